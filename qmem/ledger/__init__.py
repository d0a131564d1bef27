"""The common answer of all instruments: items, readings, traces."""

from qmem.ledger.kinds import HEADINGS, WATERLINES, Kind, Waterline
from qmem.ledger.ledger import (
    SCHEMA_VERSION,
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
    from_json,
    to_json,
)
from qmem.ledger.trace import Label, Mark, Trace

__all__ = [
    "HEADINGS", "SCHEMA_VERSION", "WATERLINES", "Instrument", "Interval", "Item", "Kind", "Label", "Ledger", "Mark",
    "Moment", "Parameters", "Peak", "Phase", "Reading", "Space", "Trace", "Waterline", "from_json", "to_json",
]  # fmt: skip
