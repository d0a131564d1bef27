"""``qmem compare A B``: two stored ledgers side by side."""

from typing import TYPE_CHECKING, Any

import click

from qmem.cli.command import VerbCommand
from qmem.cli.stored import STDIN, Form, chosen_form, output_options, put, read_ledger, rendered
from qmem.errors import UsageError

if TYPE_CHECKING:
    from qmem.ledger import Ledger


def show_comparison(a: str, b: str, **given: Any) -> None:
    """Print both ledgers and their difference; whether they differ is no failure."""
    form = chosen_form(given)
    if a == b == STDIN:
        raise UsageError("both ledgers are to be read from stdin", hint="name a file for one of them")
    put(_text(read_ledger(a), read_ledger(b), form, given["output"]), given["output"])


def _text(a: "Ledger", b: "Ledger", form: Form, output: str | None) -> str:
    if form == "json":
        from qmem.report.records import comparison_json

        return comparison_json(a, b).decode() + "\n"
    if form == "csv":
        from qmem.report.table_export import comparison_csv

        return comparison_csv(a, b)
    if form == "markdown":
        from qmem.report.markdown import comparison_markdown

        return comparison_markdown(a, b)
    from qmem.report.compare import render_comparison

    return rendered(lambda console: render_comparison(console, a, b), output)


command = VerbCommand(
    "compare",
    callback=show_comparison,
    params=[click.Argument(["a"], metavar="A"), click.Argument(["b"], metavar="B"), *output_options()],
    help="Print two stored ledgers side by side, and B less A, by kind, waterline and phase.\n\n"
    "A and B are files that qmem estimate --json printed or qmem profile stored; one of them may be - for stdin.",
    epilog="Example: qmem compare before.json after.json",
)
