"""What a difference from the baseline means: growth, drops, budgets, what cannot be compared, and the cause."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from qmem import estimate
from qmem.errors import UsageError
from qmem.gate.baseline import baseline_of
from qmem.gate.figures import figures
from qmem.gate.judging import EXACT, MEASURED, SIMULATED, judge
from qmem.gate.scenario import make_scenario
from qmem.ledger import Ledger
from qmem.units import MIB, format_move


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


def test_out_of_memory_is_a_finding_and_names_the_versions_that_changed(scenario):
    one = scenario()
    ledger = as_phantom(of_job(one))
    ended = structs.replace(as_phantom(ledger, peft="0.20.0"), ended="out of memory")
    verdict = judge(one, ended, accepted(one, as_phantom(ledger, peft="0.21.2")))
    assert (verdict.outcome, verdict.changed) == ("out of memory", ("peft 0.21.2 -> 0.20.0",))


def test_where_the_allocator_alone_grew_it_says_that_tensors_ask_for_less():
    """A smaller batch lets the allocator leave longer tails: the optimizer's step has fewer bytes in larger blocks."""
    two, one = (
        make_scenario("half", {"model": "Qwen/Qwen2-1.5B", "seq": 512, "batch": batch}, Path()) for batch in (2, 1)
    )
    baseline = baseline_of(two, estimate(two.job, replay="full"), {"reason": "test"})
    verdict = judge(one, estimate(one.job, replay="full"), baseline)
    assert verdict.outcome == "grown"
    worst = verdict.findings[0]
    assert worst.phase.endswith("optimizer step")
    assert sum(worst.kinds.values()) == worst.change
    asked = sum(change for kind, change in worst.kinds.items() if kind != "rounding")
    assert asked < 0
    assert f"(rounding: unsplit tails of blocks; tensors ask for {-asked:,} B less)" in verdict.why


def test_another_number_of_steps_moves_no_holding(scenario):
    """Holdings are kept of the last step alone: those of one run's second stand against another's third."""
    one = scenario()
    same_steps = judge(one, of_job(one, rank=64), accepted(one))
    later = accepted(one)
    third = {name.replace("step 2", "step 3"): n_bytes for name, n_bytes in later.figures.items()}
    counters = {name: n_bytes for name, n_bytes in later.figures.items() if name.count(" | ") == 1}
    verdict = judge(one, of_job(one, rank=64), structs.replace(later, figures={**third, **counters}))
    of_second = {finding.phase: finding for finding in verdict.findings if finding.phase.startswith("step 2")}
    assert of_second
    assert of_second == {
        finding.phase: finding for finding in same_steps.findings if finding.phase.startswith("step 2")
    }


@pytest.mark.parametrize(
    ("was", "now", "written"),
    [
        (4_267_607_552, 8_806_917_632, "3.97 GiB -> 8.20 GiB"),
        (1_119_303_680, 1_121_400_832, "1,067.45 MiB -> 1,069.45 MiB"),
        (1_119_303_680, 1_119_304_704, "1,093,070.00 KiB -> 1,093,071.00 KiB"),
        (1_119_303_680, 1_119_303_681, "1,119,303,680 B -> 1,119,303,681 B"),
        (0, 512, "0 B -> 512 B"),
        (7, 7, "7 B -> 7 B"),
    ],
)
def test_two_amounts_are_written_so_that_they_differ(was, now, written):
    assert format_move(was, now) == written


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
