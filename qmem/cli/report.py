"""``qmem report FILE``: a stored ledger, printed again in any form."""

from typing import TYPE_CHECKING, Any

import click

from qmem.cli.command import VerbCommand
from qmem.cli.stored import Form, chosen_form, output_options, put, read_ledger, rendered

if TYPE_CHECKING:
    from rich.console import Console

    from qmem.ledger import Ledger


def show_report(file: str, **given: Any) -> None:
    """Print the ledger of a file."""
    form = chosen_form(given)
    put(_text(read_ledger(file), form, given["output"]), given["output"])


def _text(ledger: "Ledger", form: Form, output: str | None) -> str:
    if form == "json":
        from qmem.ledger import to_json

        return to_json(ledger).decode() + "\n"
    if form == "csv":
        from qmem.report.table_export import ledger_csv

        return ledger_csv(ledger)
    if form == "markdown":
        from qmem.report.markdown import ledger_markdown

        return ledger_markdown(ledger)
    return rendered(lambda console: _render(console, ledger), output)


def _render(console: "Console", ledger: "Ledger") -> None:
    """The page of an estimate, then what only a run has, and what the counters said in each phase."""
    from qmem.report.ledger_sheets import end_sheets, phase_sheets, run_sheets
    from qmem.report.sheets import print_sheets
    from qmem.report.terminal import render_estimate
    from qmem.report.view import EstimateView

    render_estimate(console, EstimateView(ledger=ledger))
    console.print()
    print_sheets(console, (*end_sheets(ledger), *run_sheets(ledger), *phase_sheets(ledger)))


command = VerbCommand(
    "report",
    callback=show_report,
    params=[click.Argument(["file"], metavar="FILE"), *output_options()],
    help="Print a stored ledger.\n\nFILE is what qmem estimate --json printed or qmem profile stored; - is stdin.",
    epilog="Example: qmem report run.json --format markdown -o run.md",
)
