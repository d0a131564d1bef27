"""Sheets: a titled table with what must be said below it, before anybody knows whether it becomes text or Markdown.

It owns no words and no numbers.
"""

from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmem.report.tables import add_numbers, add_texts, new_table, print_table
from qmem.report.text import spelling

Style = Literal["", "bold"]


class Line(NamedTuple):
    """One line of a table; a short line leaves its last cells empty."""

    cells: tuple[str, ...]
    style: Style = ""


class Sheet(NamedTuple):
    """A table under a title.

    Attributes:
        title: one line.
        texts: headers of the first columns, which are words.
        numbers: headers of the columns after them, which are amounts.
        lines: the table.
        totals: lines below a rule.
        notes: paragraphs below the table.
    """

    title: str
    texts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    totals: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()


def print_sheets(console: Console, sheets: tuple[Sheet, ...]) -> None:
    """Print the sheets, one below the other; the console's width, colours and encoding are honoured."""
    spell = spelling(console.encoding)
    for position, sheet in enumerate(sheets):
        if position:
            console.print()
        console.print(Text(spell(sheet.title), style="bold"))
        if sheet.lines or sheet.totals:
            print_table(console, _table(sheet, console.encoding))
        for note in sheet.notes:
            console.print(Text(spell(note), style="dim"))


def _table(sheet: Sheet, encoding: str) -> Table:
    spell = spelling(encoding)
    table = new_table()
    add_texts(table, sheet.texts)
    add_numbers(table, sheet.numbers)
    for line in sheet.lines:
        table.add_row(*(Text(spell(cell)) for cell in line.cells), style=line.style or None)
    if sheet.totals:
        table.add_section()
    for line in sheet.totals:
        table.add_row(*(Text(spell(cell)) for cell in line.cells), style=line.style or None)
    return table
