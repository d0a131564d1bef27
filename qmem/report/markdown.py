"""Ledgers and their comparison as GitHub-flavoured Markdown, for a pull request or a page."""

from qmem.ledger import Ledger
from qmem.report.compare import comparison_sheets
from qmem.report.ledger_sheets import ledger_sheets
from qmem.report.sheets import Line, Sheet


def ledger_markdown(ledger: Ledger) -> str:
    """A stored ledger: the peak kind by kind, its largest holdings, the phases of each step."""
    return document(ledger_sheets(ledger))


def comparison_markdown(a: Ledger, b: Ledger) -> str:
    """Two ledgers side by side; the same tables as on a terminal."""
    return document(comparison_sheets(a, b))


def document(sheets: tuple[Sheet, ...]) -> str:
    """Any sheets, one below the other."""
    return "\n\n".join(map(_section, sheets)) + "\n"


def _section(sheet: Sheet) -> str:
    lines = (*sheet.lines, *sheet.totals)
    parts = [f"### {_literal(sheet.title)}", *([_table(sheet, lines)] if lines else []), *map(_literal, sheet.notes)]
    return "\n\n".join(parts)


def _table(sheet: Sheet, lines: tuple[Line, ...]) -> str:
    headers = [" ".join(header.split()) for header in (*sheet.texts, *sheet.numbers)]
    rules = ["---"] * len(sheet.texts) + ["---:"] * len(sheet.numbers)
    rows = [_padded(line, len(headers)) for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ([_literal(header) for header in headers], rules, *rows))


def _padded(line: Line, n_columns: int) -> list[str]:
    """The cells of a line, bold where it is; what is indented stays so."""
    cells = [_cell(cell, bold=line.style == "bold") for cell in line.cells]
    return cells + [""] * (n_columns - len(cells))


def _cell(text: str, *, bold: bool) -> str:
    words = _literal(text.strip())
    indent = "&nbsp;&nbsp;" if text.startswith("  ") else ""
    return f"**{words}**" if bold and words else f"{indent}{words}"


_SIGNS = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]<>|#"})


def _literal(text: str) -> str:
    """The text with no sign that Markdown would take for its own, on one line."""
    return " ".join(text.split()).translate(_SIGNS)
