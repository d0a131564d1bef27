"""How amounts and sentences are spelled: digits, intervals, ASCII.  It knows nothing of ledgers' arithmetic."""

from collections.abc import Callable, Iterable

from qmem.ledger import Interval
from qmem.units import GB, GIB

Spell = Callable[[str], str]
"""A sentence as an output can show it."""

_ASCII = str.maketrans({
    "\N{MULTIPLICATION SIGN}": "x", "\N{MIDDLE DOT}": "*", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "...", "\N{RIGHTWARDS ARROW}": "->", "\N{FULL BLOCK}": "#",
    "\N{LESS-THAN OR EQUAL TO}": "<=", "\N{GREATER-THAN OR EQUAL TO}": ">=", "\N{PLUS-MINUS SIGN}": "+/-",
    "\N{LEFT CEILING}": "ceil(", "\N{RIGHT CEILING}": ")",
})  # fmt: skip
"""Signs that formulas are written with; any other sign becomes a question mark."""


def spelling(encoding: str) -> Spell:
    """How an output with this encoding spells a sentence: unchanged, or in ASCII where it may not know the signs."""
    return str if encoding.lower().startswith("utf") else _in_ascii


def _in_ascii(text: str) -> str:
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def thousandths(units: Interval, n_bytes: Interval) -> str:
    """``1.234``, ``0.000 to 0.150``, and ``<0.001`` for something that is too small to show."""
    low, high = (_decimal(unit, exact, 3) for unit, exact in ((units.low, n_bytes.low), (units.high, n_bytes.high)))
    return low if n_bytes.low == n_bytes.high else f"{low} to {high}"


def hundredths(units: Interval) -> str:
    """``7.48``, ``5.00 to 7.00``: an amount given in hundredths."""
    return f"{units.low / 100:.2f}" if units.low == units.high else f"{units.low / 100:.2f} to {units.high / 100:.2f}"


def _decimal(units: int, n_bytes: int, digits: int) -> str:
    if units == 0 and n_bytes > 0:
        return f"<{10**-digits:.{digits}f}"
    return f"{units / 10**digits:.{digits}f}"


def interval_gib(n_bytes: Interval, *, sign: bool = False) -> str:
    """``21.20 to 21.80``: GiB with two decimals, with a sign where it is a difference."""
    shape = "+.2f" if sign else ".2f"
    ends = [f"{end / GIB:{shape}}" for end in (n_bytes.low, n_bytes.high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def interval_gb(n_bytes: Interval) -> str:
    """``13.98 to 16.48``: decimal gigabytes with two decimals."""
    ends = [f"{end / GB:.2f}" for end in (n_bytes.low, n_bytes.high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def excess_gb(n_bytes: Interval, rule: Interval) -> str:
    """How far one interval lies above (+) or below (-) another, in GB; ``within`` where they meet."""
    if n_bytes.low > rule.high:
        return f"{(n_bytes.low - rule.high) / GB:+.2f}"
    return f"{(n_bytes.high - rule.low) / GB:+.2f}" if n_bytes.high < rule.low else "within"


def listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
