"""A ledger as a flat table of figures, so that two of them can be held against each other line by line.

``step 2 backward | peak allocated`` is a counter, ``step 2 backward | gradient | model.layers.{0..39}.…`` what an owner
holds at that phase's high water, and ``paged | …`` what lies in managed memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

from qmem.ledger import Ledger, Moment, Reading

PAGED = "paged"
SEPARATOR = " | "
WATERLINES = ("requested", "allocated", "reserved")


class Counter(NamedTuple):
    """The name of a counter's figure."""

    phase: str
    measure: str
    waterline: str

    def __str__(self) -> str:
        """As it stands in a baseline."""
        return f"{self.phase}{SEPARATOR}{self.measure} {self.waterline}"


class Owner(NamedTuple):
    """The name of a holding's figure."""

    phase: str
    kind: str
    owner: str

    def __str__(self) -> str:
        """As it stands in a baseline."""
        return SEPARATOR.join(self)


def figures(ledger: Ledger) -> dict[str, int]:
    """Every counter of every phase, and the holdings at the high waters of load, preparation and the last step."""
    return dict(_counters(ledger)) | _holdings(ledger) | _paged(ledger)


def phase_of(moment: Moment) -> str:
    """``load``, ``step 2 backward``, ``step 2.3 forward`` for the third micro-step."""
    if moment.step == 0:
        return moment.phase
    micro = f".{moment.micro_step}" if moment.micro_step > 1 else ""
    return f"step {moment.step}{micro} {moment.phase}"


def _counters(ledger: Ledger) -> Iterator[tuple[str, int]]:
    for reading in ledger.readings:
        if reading.waterline in WATERLINES and isinstance(reading.n_bytes, int):
            yield str(Counter(phase_of(reading.moment), reading.measure, reading.waterline)), reading.n_bytes


def _holdings(ledger: Ledger) -> dict[str, int]:
    last = max((reading.moment.step for reading in ledger.readings), default=0)
    found: dict[str, int] = {}
    for reading in _high_waters(ledger):
        if reading.moment.step in (0, last):
            for item in ledger.at(reading.moment):
                name = str(Owner(phase_of(reading.moment), item.kind.label, item.owner))
                found[name] = found.get(name, 0) + item.n_bytes
    return found


def _high_waters(ledger: Ledger) -> Iterator[Reading]:
    return (r for r in ledger.readings if (r.waterline, r.measure) == ("requested", "peak"))


def _paged(ledger: Ledger) -> dict[str, int]:
    found = {PAGED: ledger.paged_bytes}
    for item in ledger.items:
        if item.space == "managed":
            name = str(Owner(PAGED, item.kind.label, item.owner))
            found[name] = found.get(name, 0) + item.n_bytes
    return found
