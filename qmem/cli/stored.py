"""What ``report`` and ``compare`` share: reading a stored ledger, choosing a form, putting the result where asked."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import click

from qmem.cli.command import json_option
from qmem.cli.streams import result_console, write_file, write_result
from qmem.errors import QmemError, UsageError
from qmem.ledger import SCHEMA_VERSION, Ledger, from_json

if TYPE_CHECKING:
    from rich.console import Console

Form = Literal["table", "markdown", "json", "csv"]
FORMS: tuple[Form, ...] = ("table", "markdown", "json", "csv")
STDIN = "-"


def output_options() -> list[click.Parameter]:
    """``--format``, ``--json`` for ``--format json``, and ``-o``."""
    forms = click.Choice(FORMS)
    return [
        click.Option(["--format", "form"], type=forms, help="How to print it; csv needs pandas.  [default: table]"),
        json_option(),
        click.Option(["-o", "--output"], metavar="FILE", help="Write to FILE instead of stdout."),
    ]


def chosen_form(given: dict[str, Any]) -> Form:
    """The form that the flags mean.

    Raises:
        UsageError: ``--json`` beside another ``--format``.
    """
    form: Form | None = given["form"]
    if given["as_json"] and form not in (None, "json"):
        raise UsageError(f"contradictory: --json and --format {form}", hint="leave one of them out")
    return "json" if given["as_json"] else form or "table"


def read_ledger(path: str) -> Ledger:
    """The ledger stored in a file, or on stdin for ``-``.

    Raises:
        UsageError: there is no such file, or what is in it is no ledger of this schema version.
    """
    text = _read(path)
    try:
        _check_version(text)
        return from_json(text)
    except QmemError as error:
        hint = error.hint or "make it with qmem estimate --json"
        raise type(error)(f"{_name(path)}: {error.message}", hint=hint) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{_name(path)}: not a ledger", hint="make it with qmem estimate --json") from error


def _read(path: str) -> bytes:
    if path == STDIN:
        return sys.stdin.buffer.read()
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs start-up time
            return file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read {path!r}: {reason}", hint="name a file from qmem estimate --json") from error


def _name(path: str) -> str:
    return "stdin" if path == STDIN else path


def _check_version(text: bytes) -> None:
    """Another version may have other fields: it is refused by its number, before they are looked at."""
    import msgspec

    class Versioned(msgspec.Struct):
        schema_version: int = SCHEMA_VERSION

    try:
        version = msgspec.json.decode(text, type=Versioned).schema_version
    except (msgspec.DecodeError, msgspec.ValidationError):
        return  # no object at all, or cut short: the reader of ledgers says it better
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"the ledger has schema version {version}, this qmem reads {SCHEMA_VERSION}",
            hint="make it again with this qmem, or read it with the one that made it",
        )


def put(text: str, output: str | None) -> None:
    """The result, into a file or on stdout."""
    if output is None:
        write_result(text)
    else:
        write_file(output, text.encode())


def rendered(render: Callable[["Console"], None], output: str | None) -> str:
    """What a renderer prints: as stdout can show it, or as plain text for a file."""
    console = result_console()
    if output is not None:
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), width=console.width, highlight=False, color_system=None)
    with console.capture() as captured:
        render(console)
    return captured.get()
