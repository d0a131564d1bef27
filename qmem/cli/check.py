"""``qmem check [NAME...]``: the scenarios of the project against their baselines and budgets."""

from typing import TYPE_CHECKING, Any

import click

from qmem.cli.command import VerbCommand, json_option
from qmem.cli.stored import chosen_form, put, rendered
from qmem.cli.streams import write_note
from qmem.errors import EXIT_CANNOT, EXIT_FINDING, EXIT_OK, EXIT_USAGE, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmem.gate import Scenario, Scenarios, Verdict
    from qmem.gate.running import Measured

FORMATS = ("table", "json", "markdown", "github", "junit", "benchmark")
FOR_FILES = FORMATS[1:]


def check(names: tuple[str, ...], **given: Any) -> int:
    """Measure, compare, print; the exit code is the worst that was found."""
    from pathlib import Path

    from qmem.gate.scenario import read_scenarios

    form = chosen_form(given)
    files = [_file(written) for written in given["files"]]
    scenarios = read_scenarios(Path.cwd())
    chosen = scenarios.chosen(names)
    verdicts = [_judged(scenarios, measured) for measured in measure_all(scenarios, chosen, given["workers"])]
    for another, path in (*files, (form, given["output"])):
        _put(_text(verdicts, another, path, strict=given["strict"]), path)
    return exit_code(verdicts, strict=given["strict"])


def measure_all(scenarios: "Scenarios", chosen: "Sequence[Scenario]", workers: int | None) -> "list[Measured]":
    """Run the scenarios, with a line of progress where somebody watches."""
    from contextlib import closing

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from qmem.cli.interrupts import told_to_end
    from qmem.gate.running import run_scenarios, workers_that_fit

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found = []
    console = Console(stderr=True)
    with (
        told_to_end(),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("scenarios", total=len(chosen))

        def began(scenario: "Scenario") -> None:
            progress.update(task, description=scenario.name)

        n_workers = workers or workers_that_fit(chosen)
        with closing(run_scenarios(chosen, scenarios.folder, workers=n_workers, began=began)) as results:
            for measured in results:
                progress.advance(task)
                found.append(measured)
    return found


def _judged(scenarios: "Scenarios", measured: "Measured") -> "Verdict":
    from qmem.gate.baseline import read_baseline
    from qmem.gate.judging import judge, not_measured

    if measured.ledger is None:
        assert measured.error is not None, "one of the two is there"
        return not_measured(measured.scenario, measured.error)
    try:
        baseline = read_baseline(scenarios.folder, measured.scenario.name)
    except UsageError as error:
        return not_measured(measured.scenario, error)
    return judge(measured.scenario, measured.ledger, baseline)


def exit_code(verdicts: "Sequence[Verdict]", *, strict: bool) -> int:
    """2 goes before 1 before 3: an error in a scenario, a finding, nothing to compare with."""
    codes = {code_of(verdict, strict=strict) for verdict in verdicts}
    return next((code for code in (EXIT_USAGE, EXIT_FINDING, EXIT_CANNOT) if code in codes), EXIT_OK)


def code_of(verdict: "Verdict", *, strict: bool) -> int:
    """What one verdict means for the process."""
    if verdict.outcome == "stale":
        return EXIT_FINDING if strict else EXIT_OK
    codes = {"grown": EXIT_FINDING, "over budget": EXIT_FINDING, "out of memory": EXIT_FINDING, "wrong": EXIT_USAGE}
    missing = {"not comparable": EXIT_CANNOT, "no baseline": EXIT_CANNOT, "not measured": EXIT_CANNOT}
    return {**codes, **missing}.get(verdict.outcome, EXIT_OK)


def _text(verdicts: "Sequence[Verdict]", form: str, output: str | None, *, strict: bool) -> str:
    """The verdicts in one of the forms."""
    if form == "table":
        from qmem.report.gate_table import render_verdicts

        return rendered(lambda console: render_verdicts(console, verdicts), output)
    from qmem.report.gate_formats import FORMATS as WRITERS

    failing = [verdict.scenario for verdict in verdicts if code_of(verdict, strict=strict) != EXIT_OK]
    return WRITERS[form](verdicts, failing)


def _file(written: str) -> tuple[str, str]:
    """The form and the path of ``--write junit=qmem.xml``; asked for before anything is measured."""
    form, _, path = written.partition("=")
    if form not in FOR_FILES or not path:
        raise UsageError(
            f"--write {written!r} is not FORMAT=FILE", hint=f"write for example junit=qmem.xml; {', '.join(FOR_FILES)}"
        )
    return form, path


def _put(text: str, output: str | None) -> None:
    put(text, output)
    if output is not None:
        write_note(f"written to {output}")


command = VerbCommand(
    "check",
    callback=check,
    params=[
        click.Argument(["names"], metavar="[NAME]...", nargs=-1),
        click.Option(["--strict"], is_flag=True, help="Fail where memory fell, too: the baseline is stale."),
        click.Option(["--workers"], type=click.IntRange(1), help="Runs at once; as many as host memory allows."),
        click.Option(
            ["--format", "form"], type=click.Choice(FORMATS), help="How the result is printed.  [default: table]",
        ),
        json_option(),
        click.Option(["-o", "--output"], metavar="FILE", help="Write the result to a file."),
        click.Option(
            ["--write", "files"], multiple=True, metavar="FORMAT=FILE",
            help="Write the result in a further form to a file; may be repeated.",
        ),
    ],
    help="Measure the scenarios of this project and compare them with their baselines and budgets.\n\n"
    "Scenarios stand in pyproject.toml as [tool.qmem.scenarios.NAME], or in qmem.toml as [scenarios.NAME].",
    epilog="Example: qmem check --format github",
)  # fmt: skip
