"""Lists as text in columns: aligned, without lines or colours, so that they read the same in a pipe."""

from collections.abc import Iterable, Sequence
from shutil import get_terminal_size
from textwrap import wrap

from qmem.cli.streams import MIN_WIDTH

GAP = "  "
INDENT = "    "


def columns(titles: Sequence[str], rows: Iterable[tuple[Sequence[str], str]], right: Sequence[str], legend: str) -> str:
    """Titles, rows and what they mean; a row's remark, if it has one, stands wrapped and indented below it.

    ``right`` names the columns that are numbers, which end at the same place.
    """
    listed = list(rows)
    cells = [titles, *(row for row, _ in listed)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(titles))]
    signs = [">" if title in right else "<" for title in titles]
    lines = [_line(titles, signs, widths)]
    for row, remark in listed:
        lines += [_line(row, signs, widths), *_wrapped(remark, INDENT)]
    return "\n".join([*lines, "", *_wrapped(legend)]) + "\n"


def _line(row: Sequence[str], signs: Sequence[str], widths: Sequence[int]) -> str:
    shaped = (f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True))
    return GAP.join(shaped).rstrip()


def _wrapped(text: str, indent: str = "") -> list[str]:
    width = max(get_terminal_size().columns, MIN_WIDTH)
    return wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
