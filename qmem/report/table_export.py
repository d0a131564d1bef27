"""Records as CSV.  The only file of the reports that needs pandas, and it imports it when it is called."""

from collections.abc import Sequence

from qmem.errors import UnavailableError
from qmem.ledger import Ledger
from qmem.ledger.comparison import compare
from qmem.report.records import COMPARISON_COLUMNS, LEDGER_COLUMNS, Record, comparison_records, ledger_records
from qmem.report.snapshot_records import SNAPSHOT_COLUMNS, snapshot_records
from qmem.snapshot.answer import Answer


def ledger_csv(ledger: Ledger) -> str:
    """Items and readings of a ledger, one line each.

    Raises:
        UnavailableError: pandas is not installed.
    """
    return _csv(ledger_records(ledger), LEDGER_COLUMNS)


def comparison_csv(a: Ledger, b: Ledger) -> str:
    """Every number of a comparison, one line each.

    Raises:
        UnavailableError: pandas is not installed.
    """
    return _csv(comparison_records(compare(a, b)), COMPARISON_COLUMNS)


def snapshot_csv(answer: Answer) -> str:
    """Moments, holders and segments of a snapshot, one line each.

    Raises:
        UnavailableError: pandas is not installed.
    """
    return _csv(snapshot_records(answer), SNAPSHOT_COLUMNS)


def _csv(records: list[Record], columns: Sequence[str]) -> str:
    try:
        import pandas  # noqa: ICN001, PLC0415 - loaded only where a table is exported
    except ImportError as error:
        raise UnavailableError(
            f"CSV needs pandas, which cannot be imported ({error})", hint='pip install "qmem-planner[table]"'
        ) from error
    # dtype=object keeps whole bytes whole: a column with a gap would become floats.
    frame = pandas.DataFrame(records, columns=list(columns), dtype=object)
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text
