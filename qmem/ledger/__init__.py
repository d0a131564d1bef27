"""The common answer of all instruments: items, readings, traces, and their comparison."""

from typing import TYPE_CHECKING, Any

from qmem.ledger.kinds import HEADINGS, WATERLINES, Kind, Waterline
from qmem.ledger.ledger import (
    SCHEMA_VERSION,
    Doubt,
    Ended,
    Instrument,
    Interval,
    Item,
    Ledger,
    Moment,
    Parameters,
    Peak,
    Phase,
    Reading,
    Space,
    State,
    from_json,
    to_json,
)
from qmem.ledger.trace import Label, Mark, Trace

if TYPE_CHECKING:
    from qmem.ledger.comparison import Comparison, compare

__all__ = [
    "HEADINGS", "SCHEMA_VERSION", "WATERLINES", "Comparison", "Doubt", "Ended", "Instrument", "Interval", "Item",
    "Kind", "Label", "Ledger", "Mark", "Moment", "Parameters", "Peak", "Phase", "Reading", "Space", "State", "Trace",
    "Waterline", "compare", "from_json", "to_json",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the comparison on first use: an estimate alone does not pay for it."""
    if name not in ("Comparison", "compare"):
        raise AttributeError(f"module 'qmem.ledger' has no attribute {name!r}")
    from qmem.ledger import comparison  # noqa: PLC0415

    return getattr(comparison, name)
