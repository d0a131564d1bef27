"""How amounts that stand side by side are written: GiB, exact differences, per cent, and what is not known."""

from typing import NamedTuple

from qmem.ledger import Instrument, Interval, Kind, Ledger
from qmem.ledger.differences import Amount, ends
from qmem.report.breakdown import ROW_SCALE
from qmem.report.rounding import share_units, to_units
from qmem.report.text import thousandths
from qmem.units import GIB

UNKNOWN = "-"
SMALLEST = 0.01
"""The smallest per cent that two decimals show."""

MANY_FOLD = 1000
"""From this many per cent on decimals say nothing."""

_WORD: dict[Instrument, str] = {"estimate": "estimate", "phantom profile": "simulated", "profile": "measured"}
_WORDS: dict[Instrument, str] = {
    "estimate": "estimate, a walk on paper",
    "phantom profile": "phantom profile, simulated",
    "profile": "profile, measured",
}


def short_truth(ledger: Ledger) -> str:
    """What a column of numbers is, a word a line: ``simulated``, and ``tainted`` or ``assumed`` where it is."""
    return "\n".join([_WORD[ledger.instrument], *([] if ledger.state == "clean" else [ledger.state])])


def full_truth(ledger: Ledger) -> str:
    """The instrument, how far it is to be trusted, and whether it came to its end."""
    state = ledger.state if ledger.instrument == "phantom profile" or ledger.state != "clean" else ""
    ended = "" if ledger.ended == "complete" else f"ended early: {ledger.ended}"
    return ", ".join(filter(None, (_WORDS[ledger.instrument], state, ended)))


class Units(NamedTuple):
    """A printed amount in thousandths of a GiB, and the bytes it stands for."""

    units: int
    n_bytes: int

    @classmethod
    def of(cls, n_bytes: int) -> "Units":
        """The nearest printed amount."""
        return cls(to_units(n_bytes, GIB, ROW_SCALE), n_bytes)

    @classmethod
    def total(cls, parts: "list[Units]") -> "Units":
        """The sum of printed amounts."""
        return cls(sum(part.units for part in parts), sum(part.n_bytes for part in parts))

    def __str__(self) -> str:
        return thousandths(Interval(self.units, self.units), Interval(self.n_bytes, self.n_bytes))


def gib_units(parts: dict[Kind, int], total: int) -> dict[Kind, Units]:
    """The printed amount of each part, chosen so that they add up to the printed ``total``, which is their sum."""
    shared = share_units(list(parts.values()), GIB, ROW_SCALE, to_units(total, GIB, ROW_SCALE))
    return {kind: Units(units, parts[kind]) for kind, units in zip(parts, shared, strict=True)}


def gib(amount: Amount | None, *, sign: bool = False) -> str:
    """``18.926``, ``20.100 to 20.500``, or the sign for what is not known."""
    if amount is None:
        return UNKNOWN
    low, high = (to_units(end, GIB, ROW_SCALE) for end in ends(amount))
    if sign:
        return f"{low / ROW_SCALE:+.3f}"
    return thousandths(Interval(low, high), Interval(*ends(amount)))


def signed(moved: Amount | None) -> str:
    """``+133,693,440``, ``0``; both ends where there is doubt."""
    if moved is None:
        return UNKNOWN
    low, high = (f"{end:+,}" if end else "0" for end in ends(moved))
    return low if low == high else f"{low} to {high}"


def percent(base: Amount | None, moved: Amount | None) -> str:
    """``+4.81``: the difference in per cent of ``base``; nothing where one is not known exactly, or is nothing."""
    if not isinstance(base, int) or not isinstance(moved, int) or not base or not moved:
        return ""
    share = 100 * moved / base
    if abs(share) < SMALLEST:
        return f"{'-' if share < 0 else '+'}<{SMALLEST}"
    return f"{share:+.2f}" if abs(share) < MANY_FOLD else f"{share:+,.0f}"
