"""Ledgers and comparisons as flat records, one number each, for programs and spreadsheets.

Bytes are integers.  An interval has its high end beside it; what is not known is absent.
"""

from typing import Any

import msgspec

from qmem.ledger import SCHEMA_VERSION, Item, Ledger, Moment, Reading
from qmem.ledger.comparison import Comparison, compare
from qmem.ledger.differences import Amount, KindDifference, ReadingDifference, ends
from qmem.ledger.holdings import OwnerDifference

LEDGER_COLUMNS = (
    "record", "step", "micro_step", "phase", "tick", "dies_step", "dies_phase", "dies_tick", "space", "device",
    "waterline", "measure", "counter", "kind", "owner", "count", "n_bytes", "n_bytes_high", "because",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "record", "step", "micro_step", "phase", "waterline", "measure", "kind", "owner", "space",
    "a_bytes", "a_bytes_high", "b_bytes", "b_bytes_high", "difference_bytes", "difference_bytes_high",
)  # fmt: skip

Record = dict[str, Any]


def ledger_records(ledger: Ledger) -> list[Record]:
    """Items and readings, one record each; a column that means nothing for a record is left out of it."""
    return [*map(_item, ledger.items), *map(_reading, ledger.readings)]


def comparison_records(compared: Comparison) -> list[Record]:
    """Every number of a comparison: at the peak, at the phases, by owner, and what is paged."""
    records = [{"record": "peak", **_number(number)} for number in compared.peak.numbers]
    for phase in compared.phases:
        at = {"step": phase.step, "micro_step": phase.micro_step, "phase": phase.phase}
        records += [{"record": "phase", **at, **_number(number)} for number in phase.numbers]
    records += [{"record": "holding at the peak", **_owner(row)} for row in compared.peak.holdings]
    records += [{"record": "named tensor", **_owner(row)} for row in compared.owners]
    records += [
        {"record": "counter", "owner": row.name, **_pair(row.a, row.b, row.change)} for row in compared.counters
    ]
    return [*records, {"record": "paged", "space": "managed", **_pair(compared.paged_a, compared.paged_b)}]


def comparison_json(a: Ledger, b: Ledger) -> bytes:
    """The comparison as one JSON object."""
    compared = compare(a, b)
    return msgspec.json.encode({
        "schema_version": SCHEMA_VERSION,
        "a": _passport(a),
        "b": _passport(b),
        "equal": compared.is_equal,
        "fields": compared.fields,
        "peak": {"a": compared.peak.a, "b": compared.peak.b, "scored": compared.peak.scored},
        "only_a": compared.only_a,
        "only_b": compared.only_b,
        "differences": comparison_records(compared),
    })  # fmt: skip


def _passport(ledger: Ledger) -> Record:
    return {
        "instrument": ledger.instrument,
        "simulated": ledger.instrument == "phantom profile",
        "state": ledger.state,
        "ended": ledger.ended,
        "passport": ledger.passport,
        "model": ledger.model,
        "device": ledger.device,
        "versions": ledger.versions,
    }


def _item(item: Item) -> Record:
    dies = item.dies
    death = {"dies_step": dies.step, "dies_phase": dies.phase, "dies_tick": dies.tick} if dies else {}
    held = {"space": item.space, "device": item.device, "kind": item.kind.value, "owner": item.owner}
    return {"record": "item", **_moment(item.born), **death, **held, "count": item.count, "n_bytes": item.n_bytes,
            "because": item.because}  # fmt: skip


def _reading(reading: Reading) -> Record:
    counted = {"waterline": reading.waterline, "measure": reading.measure, "counter": reading.counter}
    return {"record": "reading", **_moment(reading.moment), **counted, **_amount("n_bytes", reading.n_bytes)}


def _moment(moment: Moment) -> Record:
    return {"step": moment.step, "micro_step": moment.micro_step, "phase": moment.phase, "tick": moment.tick}


def _number(number: KindDifference | ReadingDifference) -> Record:
    if isinstance(number, KindDifference):
        what: Record = {"kind": number.kind.value, "waterline": number.kind.waterline}
    else:
        what = {"waterline": number.waterline, "measure": number.measure}
    return {**what, **_pair(number.a, number.b, number.change)}


def _owner(row: OwnerDifference) -> Record:
    when = {"phase": row.when} if row.when else {}
    return {**when, "kind": row.kind.value, "owner": row.owner, "space": row.space, **_pair(row.a, row.b, row.change)}


def _pair(a: Amount | None, b: Amount | None, moved: Amount | None = None) -> Record:
    if moved is None and isinstance(a, int) and isinstance(b, int):
        moved = b - a
    return {**_amount("a_bytes", a), **_amount("b_bytes", b), **_amount("difference_bytes", moved)}


def _amount(name: str, amount: Amount | None) -> Record:
    if amount is None:
        return {}
    low, high = ends(amount)
    return {name: low} if low == high else {name: low, f"{name}_high": high}
