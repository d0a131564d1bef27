"""What is missing on one side counts as a difference; it is never taken for none."""

from pathlib import Path

import pytest
from msgspec import structs

from qmem.integrations.accuracy import writing
from qmem.integrations.accuracy.grid import read_grid, read_measured
from qmem.integrations.accuracy.scoring import Listed, Row, score
from qmem.ledger import Kind, Ledger

MEASURED = Path(__file__).parents[2] / "reports" / "accuracy" / "measured"
ENTRY = next(entry for entry in read_grid() if entry.name == "007-Qwen3-0.6B")
LEDGER = read_measured(MEASURED, ENTRY.name)


def scored(ledger: Ledger) -> Row:
    row = score(ENTRY, ledger)
    assert isinstance(row, Row), row
    return row


def without(ledger: Ledger, *phases: str) -> Ledger:
    kept = tuple(reading for reading in ledger.readings if reading.moment.phase not in phases)
    return structs.replace(ledger, readings=kept)


def in_one_side(row: Row) -> set[tuple[str, str]]:
    return {(error.only, str(error)) for error in row.phases}


def test_what_both_have_does_not_differ():
    row = scored(LEDGER)
    assert (row.loaded, row.prepared, row.requested) == (0, 0, 0)
    assert not any(error.differs for error in row.phases)


def test_a_phase_that_the_phantom_lacks_is_a_difference_and_is_listed():
    row = scored(without(LEDGER, "prepare"))
    adapter = sum(item.n_bytes for item in LEDGER.items if item.kind is Kind.ADAPTER)
    assert row.prepared == adapter
    assert ("estimate", "prepare") in in_one_side(row)
    assert "| prepare | estimate | 1 |" in writing.report([row], [], {})


def test_before_the_first_phase_of_a_side_nothing_is_known():
    row = scored(without(LEDGER, "load", "prepare"))
    assert (row.loaded, row.prepared) == (None, None)
    assert "bytes after load and after preparation equal: 0 of 1" in writing.report([row], [], {})


def test_later_micro_steps_are_held_against_the_last_that_is_walked():
    readings = [
        structs.replace(reading, n_bytes=reading.n_bytes + 4096)
        if (reading.moment.micro_step, reading.moment.phase, reading.waterline) == (4, "backward", "requested")
        else reading
        for reading in LEDGER.readings
    ]
    row = scored(structs.replace(LEDGER, readings=tuple(readings)))
    differing = {(str(error), error.closing, error.peak) for error in row.phases if error.differs}
    assert differing == {(f"backward of step {step}, micro-step 4", -4096, -4096) for step in (1, 2)}


def test_a_phase_without_a_counter_is_not_taken_for_equal():
    kept = [r for r in LEDGER.readings if (r.moment.phase, r.waterline) != ("optimizer step", "requested")]
    row = scored(structs.replace(LEDGER, readings=tuple(kept)))
    assert {error.only for error in row.phases if error.key[2] == "optimizer step"} == {"estimate"}


def test_a_kind_that_one_side_cannot_tell_differs():
    row = scored(LEDGER)._replace(kinds={Kind.CHECKPOINT: None})
    assert f"| {Kind.CHECKPOINT.label} | 1 of 1 | not known | {ENTRY.name} |" in writing.report([row], [], {})


def test_a_peak_in_another_step_is_not_the_same():
    moment = structs.replace(LEDGER.peak.moment, step=1)
    row = scored(structs.replace(LEDGER, peak=structs.replace(LEDGER.peak, moment=moment)))
    assert not row.same_phase
    assert row.kinds == {}
    assert "(1 of the jobs peak elsewhere)" in writing.report([row], [], {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"job": structs.replace(LEDGER.job, seq=512)}, "job.seq"),
        ({"device": "NVIDIA L4 (phantom)"}, "card"),
        ({"versions": {**LEDGER.versions, "torch": "2.0.0"}}, "versions.torch"),
        ({"stack": {**LEDGER.stack, "loss": "fused"}}, "stack.loss"),
    ],
)
def test_a_measurement_of_another_job_is_not_scored(change, said):
    listed = score(ENTRY, structs.replace(LEDGER, **change))
    assert isinstance(listed, Listed)
    assert listed.why == f"what is stored was measured with another {said}"
