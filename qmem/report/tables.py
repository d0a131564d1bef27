"""The look of every table: a ruled head, numbers to the right, and no character or digit ever cut off."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

NARROWEST = 76
"""A table is never squeezed below this: a narrower terminal wraps its lines, and no digit is lost."""


def new_table(texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """A table whose first columns are ``texts``, then ``numbers``; more are added with :func:`add_texts`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    add_texts(table, texts)
    add_numbers(table, numbers)
    return table


def add_texts(table: Table, headers: Sequence[str]) -> None:
    """Columns of words, which wrap; a long name is folded, not ended with dots."""
    for header in headers:
        table.add_column(header, overflow="fold")


def add_numbers(table: Table, headers: Sequence[str]) -> None:
    """Columns of amounts, which never wrap."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True, overflow="fold")


def print_table(console: Console, table: Table) -> None:
    """Print at the console's width, or at the least width that shows every digit."""
    if console.width < NARROWEST:
        table.width = NARROWEST
    console.print(table, crop=False)
