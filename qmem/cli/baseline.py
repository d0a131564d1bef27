"""``qmem baseline update | show | diff``: what the scenarios are held against."""

from typing import TYPE_CHECKING, Any

import click

from qmem.cli.command import CONTEXT_SETTINGS, VerbCommand, help_option, json_option
from qmem.cli.stored import rendered
from qmem.cli.streams import write_note, write_result
from qmem.errors import EXIT_CANNOT, EXIT_OK, EXIT_USAGE, QmemError, UsageError

if TYPE_CHECKING:
    from qmem.gate import Scenario, Scenarios
    from qmem.gate.running import Measured


def update(**given: Any) -> int:
    """Measure the scenarios and accept what they measured."""
    from qmem.cli.check import measure_all
    from qmem.gate.baseline import check_storable
    from qmem.gate.repository import check_committed

    if not given["reason"].strip():
        raise UsageError("--reason is empty", hint='say why the new figures are right: --reason "rank 8 to 16"')
    scenarios, chosen = _chosen(given["only"])
    check_storable(scenarios.folder)
    if not given["allow_dirty"]:
        check_committed(scenarios.folder)
    codes = [_accept(scenarios, measured, given["reason"]) for measured in measure_all(scenarios, chosen, None)]
    return max(codes, key=(EXIT_OK, EXIT_CANNOT, EXIT_USAGE).index)


def _accept(scenarios: "Scenarios", measured: "Measured", reason: str) -> int:
    from datetime import datetime, timezone

    from qmem.gate.baseline import baseline_of, store_baseline
    from qmem.gate.repository import commit_of

    name = measured.scenario.name
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    passport = {"reason": reason, "date": now, "commit": commit_of(scenarios.folder)}
    try:
        if measured.error is not None:
            raise measured.error
        assert measured.ledger is not None, "without an error there is a ledger"
        path = store_baseline(scenarios.folder, baseline_of(measured.scenario, measured.ledger, passport))
    except QmemError as error:
        write_note(f"{name} keeps its baseline: {error}")
        return error.exit_code
    write_result(f"{name}: {path}\n")
    return EXIT_OK


def _chosen(only: tuple[str, ...]) -> "tuple[Scenarios, tuple[Scenario, ...]]":
    from pathlib import Path

    from qmem.gate.scenario import read_scenarios

    scenarios = read_scenarios(Path.cwd())
    return scenarios, scenarios.chosen(only)


def show(names: tuple[str, ...], **given: Any) -> int:
    """Print the baselines."""
    import msgspec

    from qmem.gate.baseline import read_baseline
    from qmem.report.gate_table import render_baselines

    scenarios, chosen = _chosen(names)
    found = {scenario.name: read_baseline(scenarios.folder, scenario.name) for scenario in chosen}
    if given["as_json"]:
        write_result(msgspec.json.encode(found, order="sorted").decode() + "\n")
    else:
        write_result(rendered(lambda console: render_baselines(console, found), None))
    return EXIT_OK if all(found.values()) else EXIT_CANNOT


def diff(names: tuple[str, ...], **given: Any) -> int:
    """Print every figure that is another one now; whether it may be is what ``qmem check`` says."""
    import msgspec

    from qmem.cli.check import measure_all
    from qmem.gate.baseline import read_baseline
    from qmem.gate.figures import figures
    from qmem.report.gate_table import render_differences

    scenarios, chosen = _chosen(names)
    differences: dict[str, dict[str, tuple[int | None, int | None]]] = {}
    missing = False
    for measured in measure_all(scenarios, chosen, None):
        name = measured.scenario.name
        baseline = read_baseline(scenarios.folder, name)
        if measured.error is not None:
            write_note(f"{name}: {measured.error}")
        if measured.ledger is None or baseline is None:
            missing = True
            continue
        was, now = baseline.figures, figures(measured.ledger)
        moved = (figure for figure in sorted(was.keys() | now.keys()) if was.get(figure) != now.get(figure))
        differences[name] = {figure: (was.get(figure), now.get(figure)) for figure in moved}
    if given["as_json"]:
        write_result(msgspec.json.encode(differences).decode() + "\n")
    else:
        write_result(rendered(lambda console: render_differences(console, differences), None))
    return EXIT_CANNOT if missing else EXIT_OK


_NAMES = click.Argument(["names"], metavar="[NAME]...", nargs=-1)

command = click.Group(
    "baseline",
    help="Update, show or compare the baselines of this project's scenarios.",
    params=[help_option()],
    add_help_option=False,
    context_settings=CONTEXT_SETTINGS,
    commands=[
        VerbCommand(
            "update",
            callback=update,
            params=[
                click.Option(["--only"], multiple=True, metavar="NAME", help="This scenario only; may be repeated."),
                click.Option(["--reason"], required=True, help="Why the new figures are right; it is stored."),
                click.Option(["--allow-dirty"], is_flag=True, help="Accept a tree that is not committed."),
            ],
            help="Measure the scenarios and store what they measured under profiles/baselines/.",
            epilog='Example: qmem baseline update --only train --reason "rank 8 to 16"',
        ),
        VerbCommand("show", callback=show, params=[_NAMES, json_option()], help="Print the baselines."),
        VerbCommand("diff", callback=diff, params=[_NAMES, json_option()], help="Print every figure that moved."),
    ],
)
