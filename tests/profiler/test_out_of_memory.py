"""Where memory ends inside a step: what held it is told, and how much of the end was fragmentation."""

import pytest

from qmem.ledger import Kind, Ledger, Moment
from qmem.profiler import profile
from qmem.profiler.protocol import Noted
from qmem.report.ledger_sheets import ledger_sheets

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]

MIB = 1024**2

SMALL_CARDS = [
    (330, {}, "prepare", "too little"),
    (350, {}, "forward of step 1", "too little"),
    (480, {"method": "full", "optimizer": "adamw_torch", "seq": 64}, "optimizer step of step 1", "not in one piece"),
    (600, {"seq": 2048}, "backward of step 2", "not in one piece"),
]


@pytest.fixture(scope="module", params=SMALL_CARDS, ids=[case[2] for case in SMALL_CARDS])
def ended(request, small_job, a100):
    """A run on a card that is too small, where it ends, why, and what the person was told meanwhile."""
    mib, fields, where, why = request.param
    seen = []
    ledger = profile(small_job(**fields), phantom=a100, memory=mib * MIB, steps=2, on_progress=seen.append)
    assert ledger.ended == "out of memory"
    return ledger, where, why, seen


def end_of(ledger: Ledger) -> Moment:
    return max((reading.moment for reading in ledger.readings), key=lambda moment: moment.tick)


def test_everything_that_was_alive_where_memory_ended_has_an_owner(ended):
    ledger, where, _, _ = ended
    end = end_of(ledger)
    assert str(end) == where
    kinds = ledger.by_kind(end)
    assert kinds.get(Kind.UNEXPLAINED, 0) == 0
    (requested,) = {
        reading.n_bytes
        for reading in ledger.readings
        if (reading.moment, reading.waterline, reading.measure) == (end, "requested", "current")
    }
    assert sum(n_bytes for kind, n_bytes in kinds.items() if kind is not Kind.ROUNDING) == requested


def test_it_says_whether_the_missing_bytes_were_there_in_pieces(ended):
    ledger, _, why, _ = ended
    asked, free, unallocated = (
        ledger.counters[f"{what} where memory ended"] for what in ("asked", "free", "unallocated")
    )
    assert free < asked
    assert (free + unallocated >= asked) == (why == "not in one piece")
    (sentence,) = [warning for warning in ledger.warnings if warning.startswith("memory ended where torch asked for")]
    assert why in sentence


def test_the_page_shows_what_held_the_memory_there(ended):
    ledger, where, _, _ = ended
    (sheet,) = [sheet for sheet in ledger_sheets(ledger) if sheet.title.startswith("Where memory ended")]
    assert where in sheet.title
    amounts = [item.n_bytes for item in ledger.at(end_of(ledger))]
    largest = next(item for item in ledger.at(end_of(ledger)) if item.n_bytes == max(amounts))
    assert sheet.lines[0].cells[:2] == (largest.owner, largest.because)


def test_the_second_run_is_announced(ended):
    _, _, _, seen = ended
    assert [event for event in seen if isinstance(event, Noted) and "once more" in event.sentence]


def test_transient_holdings_come_with_their_module_and_python_line(small_job, a100):
    ledger = profile(small_job(seq=2048), phantom=a100, memory=490 * MIB, steps=2)
    end = end_of(ledger)
    assert end.phase == "loss"
    logits = [item for item in ledger.at(end) if item.kind is Kind.LOGITS]
    assert any(item.owner == "lm_head" and "modeling_qwen3.py:" in item.because for item in logits)
    assert any("the same run once more" in assumption for assumption in ledger.assumptions)
    older = [item for item in ledger.at(end) if item.kind is Kind.CHECKPOINT]
    assert older
    assert all(item.because.endswith("since the forward") for item in older)
