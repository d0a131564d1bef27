"""What a difference from the baseline means: growth, drops, budgets, what cannot be compared, and the cause."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from qmem import estimate
from qmem.errors import UsageError
from qmem.gate.baseline import baseline_of
from qmem.gate.figures import figures
from qmem.gate.judging import EXACT, MEASURED, SIMULATED, judge
from qmem.ledger import Ledger
from qmem.units import MIB


def of_job(scenario, **changes) -> Ledger:
    return estimate(scenario.job.replace(**changes))


def accepted(scenario, ledger=None):
    return baseline_of(scenario, ledger or of_job(scenario), {"reason": "test"})


def as_phantom(ledger: Ledger, **versions: str) -> Ledger:
    """The same figures as if a phantom had measured them."""
    return structs.replace(ledger, instrument="phantom profile", versions={**ledger.versions, **versions})


def grown_by(ledger: Ledger, n_bytes: int) -> Ledger:
    """A ledger in which every allocated peak is larger."""
    readings = tuple(
        structs.replace(r, n_bytes=r.n_bytes + n_bytes) if (r.waterline, r.measure) == ("allocated", "peak") else r
        for r in ledger.readings
    )
    return structs.replace(ledger, readings=readings)


def test_the_same_job_is_unchanged(scenario):
    one = scenario()
    verdict = judge(one, of_job(one), accepted(one))
    assert (verdict.outcome, verdict.findings, verdict.changed) == ("unchanged", (), ())
    assert verdict.peak == verdict.was


def test_a_larger_rank_is_named_with_its_bytes(scenario):
    one = scenario()
    verdict = judge(one, of_job(one, rank=64), accepted(one))
    assert verdict.outcome == "grown"
    assert verdict.changed == ("rank 8 -> 64",)
    in_step = next(finding for finding in verdict.findings if finding.phase == "step 2 optimizer step")
    more = of_job(one, rank=64).parameters.trainable - of_job(one).parameters.trainable
    assert in_step.kinds["adapter"] == more * 4
    assert in_step.kinds["gradient"] == more * 4


def test_lost_checkpointing_is_named_in_the_backward(scenario):
    one = scenario()
    verdict = judge(one, of_job(one, checkpointing=False), accepted(one))
    assert verdict.outcome == "grown"
    assert "checkpointing True -> False" in verdict.changed
    assert {finding.phase for finding in verdict.findings} >= {"step 2 forward", "step 2 backward"}
    forward = next(finding for finding in verdict.findings if finding.phase == "step 2 forward")
    assert max(forward.kinds, key=lambda kind: forward.kinds[kind]) == "intermediate"


def test_a_drop_is_stale_and_names_the_command(scenario):
    one = scenario(rank=64)
    verdict = judge(one, of_job(one, rank=8), accepted(one))
    assert verdict.outcome == "stale"
    assert "qmem baseline update --only small" in verdict.why
    assert all(finding.change < 0 for finding in verdict.findings)


def test_paged_bytes_are_exact(scenario):
    one = scenario(rank=64)
    ledger = as_phantom(of_job(one))
    more = structs.replace(ledger, paged_bytes=ledger.paged_bytes + 1)
    verdict = judge(one, more, accepted(one, ledger))
    assert verdict.outcome == "grown"
    assert [(finding.phase, finding.change) for finding in verdict.findings] == [("paged", 1)]


@pytest.mark.parametrize(
    ("n_bytes", "versions", "outcome"),
    [
        (1, {}, "grown"),
        (8 * MIB, {"peft": "0.21.1"}, "within tolerance"),
        (8 * MIB + 1, {"peft": "0.21.1"}, "grown"),
    ],
)
def test_a_phantom_is_exact_only_at_the_same_versions(scenario, n_bytes, versions, outcome):
    one = scenario()
    ledger = as_phantom(of_job(one))
    verdict = judge(one, as_phantom(grown_by(ledger, n_bytes), **versions), accepted(one, ledger))
    assert verdict.outcome == outcome
    assert [change.partition(" ")[0] for change in verdict.changed] == list(versions)


def test_reserved_is_gated_only_on_request(scenario):
    def reserved_grown(ledger: Ledger) -> Ledger:
        readings = tuple(
            structs.replace(r, n_bytes=2 * r.n_bytes) if r.waterline == "reserved" else r for r in ledger.readings
        )
        return structs.replace(ledger, readings=readings)

    asked, not_asked = scenario(gates_reserved=True), scenario()
    ledger = of_job(asked)
    assert judge(not_asked, reserved_grown(ledger), accepted(not_asked, ledger)).outcome == "within tolerance"
    assert judge(asked, reserved_grown(ledger), accepted(asked, ledger)).outcome == "grown"


def test_a_budget_counts_at_its_waterline(scenario):
    one = scenario(budget="1 MiB")
    verdict = judge(one, of_job(one), accepted(one))
    assert verdict.outcome == "over budget"
    assert "over the budget of 1.00 MiB" in verdict.why
    ledger = of_job(one)
    between = (ledger.peak.allocated_bytes + ledger.peak.reserved_bytes) // 2
    assert judge(scenario(budget=between), ledger, accepted(one)).outcome == "unchanged"
    assert judge(scenario(budget=between, waterline="reserved"), ledger, accepted(one)).outcome == "over budget"


def test_growth_over_budget_says_both(scenario):
    one = scenario(budget="1 MiB")
    verdict = judge(one, of_job(one, rank=64), accepted(one))
    assert verdict.outcome == "grown"
    assert "over the budget" in verdict.why


def test_without_a_baseline_the_command_is_named(scenario):
    one = scenario()
    verdict = judge(one, of_job(one), None)
    assert verdict.outcome == "no baseline"
    assert 'qmem baseline update --only small --reason "…"' in verdict.why


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"device": "NVIDIA H200"}, "device"),
        ({"instrument": "profile"}, "instrument"),
        ({"passport": {"compute capability": "9.0"}}, "compute capability"),
    ],
)
def test_another_place_cannot_be_compared(scenario, changes, what):
    one = scenario()
    verdict = judge(one, structs.replace(of_job(one), **changes), accepted(one))
    assert verdict.outcome == "not comparable"
    assert verdict.why.startswith(f"another {what} (")


def test_other_allocator_settings_cannot_be_compared(scenario):
    one = scenario()
    verdict = judge(one, of_job(one, expandable_segments=True), accepted(one))
    assert verdict.outcome == "not comparable"
    assert "allocator settings" in verdict.why


@pytest.mark.parametrize("changes", [{"ended": "out of memory"}, {"ended": "failed"}, {"state": "tainted"}])
def test_a_failed_or_tainted_run_is_no_baseline(scenario, changes):
    one = scenario()
    with pytest.raises(UsageError, match="cannot be a baseline"):
        accepted(one, structs.replace(of_job(one), **changes))


def test_out_of_memory_is_a_finding(scenario):
    one = scenario()
    verdict = judge(one, structs.replace(of_job(one), ended="out of memory"), accepted(one))
    assert verdict.outcome == "out of memory"


def test_figures_add_up_at_the_peak(scenario):
    one = scenario()
    ledger = of_job(one)
    table = figures(ledger)
    phase = "step 2 backward"
    held = [n for name, n in table.items() if name.startswith(f"{phase} | ") and name.count(" | ") == 2]
    rounding = [n for name, n in table.items() if name.startswith((f"{phase} | rounding", f"{phase} | cache"))]
    assert sum(held) - sum(rounding) == table[f"{phase} | peak requested"]


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_a_limit_never_falls_when_the_baseline_grows(a, b):
    low, high = sorted((a, b))
    for tolerance in (EXACT, SIMULATED, MEASURED):
        assert 0 <= tolerance.limit(low) <= tolerance.limit(high)
