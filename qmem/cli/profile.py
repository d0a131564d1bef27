"""``qmem profile MODEL``: real training steps on a GPU or on a phantom of one, beside the estimate of the same job."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qmem.cli.command import VerbCommand, json_option
from qmem.cli.job_options import job_from_flags, job_parameters
from qmem.cli.streams import result_console, write_note, write_result
from qmem.errors import (
    EXIT_CANNOT,
    EXIT_FINDING,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_OUT_OF_MEMORY,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from qmem.catalogue import Gpu
    from qmem.ledger import Ledger
    from qmem.profiler.protocol import AnyEvent

EXIT_CODES = {
    "complete": EXIT_OK,
    "out of memory": EXIT_OUT_OF_MEMORY,
    "interrupted": EXIT_INTERRUPTED,
    "failed": EXIT_CANNOT,
}
"""By how the run ended."""


def show_profile(**given: Any) -> int:
    """Run, store, print; the exit code says how the run ended, then whether the card of ``--gpu`` is too small."""
    from qmem.catalogue import find_gpu
    from qmem.cli.interrupts import told_to_end
    from qmem.profiler import profile
    from qmem.profiler.storing import check_place
    from qmem.units import parse_bytes

    job = job_from_flags(given)
    phantom = find_gpu(given["phantom"]) if given["phantom"] is not None else None
    memory = parse_bytes(given["memory"]) if given["memory"] is not None else None
    judged = find_gpu(given["gpu"]) if given["gpu"] is not None else None
    out = Path(given["output"]) if given["output"] is not None else None
    weights = Path(given["weights"]) if given["weights"] is not None else None
    if out is not None:
        check_place(out)
    with told_to_end(), _progress() as on_progress:
        ledger = profile(
            job, phantom=phantom, memory=memory, steps=given["steps"], weights=weights, load=given["load"],
            on_progress=on_progress,
        )  # fmt: skip
    # First: whatever happens to the page, the measurement is kept.
    is_stored = _store(ledger, out)
    _show(ledger, phantom, judged or phantom, as_json=given["as_json"])
    return _exit_code(ledger, judged, is_stored=is_stored)


@contextmanager
def _progress() -> "Iterator[Callable[[AnyEvent], None]]":
    """A line on stderr that follows the run, where somebody can see it."""
    from rich.console import Console

    from qmem.cli.progress import RunLine

    console = Console(stderr=True, highlight=False)
    with console.status("starting the worker") as status:
        yield RunLine(status.update)


def _show(ledger: "Ledger", phantom: "Gpu | None", card: "Gpu | None", *, as_json: bool) -> None:
    if as_json:
        from qmem.ledger import to_json

        write_result(to_json(ledger).decode() + "\n")
    else:
        _show_page(ledger, phantom, card)
    for warning in ledger.warnings:
        write_note(f"warning: {warning}")


def _show_page(ledger: "Ledger", phantom: "Gpu | None", card: "Gpu | None") -> None:
    """The estimate beside the measurement, where the estimator can walk the job; else the measurement alone."""
    from qmem.planner import verdict
    from qmem.report.compare import render_comparison
    from qmem.report.ledger_sheets import ledger_sheets
    from qmem.report.sheets import print_sheets
    from qmem.report.text import spelling
    from qmem.report.verdicts import print_verdicts

    estimated = _estimate(ledger, phantom or _card_of(ledger))
    console = result_console()
    with console.capture() as captured:
        if estimated is not None:
            render_comparison(console, estimated, ledger)
        else:
            print_sheets(console, ledger_sheets(ledger))
        if card is not None and ledger.ended == "complete":
            print_verdicts(console, ledger, (verdict(ledger, card),), spelling(console.encoding))
    write_result(captured.get())


def _estimate(ledger: "Ledger", card: "Gpu | None") -> "Ledger | None":
    """The estimate of the same job on as much memory; a complete run alone has a peak to hold it against."""
    from msgspec import structs

    from qmem.estimator import estimate

    if ledger.ended != "complete":
        return None
    total = ledger.passport.get("total bytes")
    if card is not None and total is not None:
        card = structs.replace(card, total_bytes=int(total))
    try:
        return estimate(ledger.job, card, replay="full")
    except UsageError as error:
        write_note(f"no estimate beside it: {error.message}")
        return None


def _card_of(ledger: "Ledger") -> "Gpu | None":
    """The catalogue's entry of the GPU that was measured on."""
    from qmem.catalogue import find_gpu

    try:
        return find_gpu(ledger.device)
    except UsageError:
        return None


def _store(ledger: "Ledger", out: Path | None) -> bool:
    """Store the ledger and say where; a place that cannot be written takes nothing from what is printed."""
    from qmem.profiler.storing import store

    try:
        place = store(ledger, out)
    except UnavailableError as error:
        write_note(str(error))
        return False
    write_note(f"stored as {place}")
    return True


def _exit_code(ledger: "Ledger", judged: "Gpu | None", *, is_stored: bool) -> int:
    from qmem.planner import verdict

    code = EXIT_CODES[ledger.ended]
    if code != EXIT_OK or not is_stored:
        return code or EXIT_CANNOT
    too_small = judged is not None and verdict(ledger, judged).outcome == "does not fit"
    return EXIT_FINDING if too_small else EXIT_OK


command = VerbCommand(
    "profile",
    callback=show_profile,
    params=[
        *job_parameters(),
        click.Option(["--phantom"], metavar="GPU", help="Simulate this card instead of running on a real one."),
        click.Option(["--memory"], metavar="AMOUNT", help="Memory of the simulated card, as 22GiB."),
        click.Option(["--steps"], type=int, default=3, show_default=True, metavar="NUMBER", help="Clean steps."),
        click.Option(["--weights"], metavar="FOLDER", help="Load this local checkpoint instead of made-up weights."),
        click.Option(["--load"], is_flag=True, help="Load by from_pretrained, from zeros that take no disk."),
        click.Option(["-o", "--output"], metavar="FILE", help="Store the ledger here instead of under profiles/runs."),
        json_option(),
    ],
    help="Run real training steps, read every counter, and show them beside the estimate.\n\n"
    "MODEL is a name of qmem models, a mirror of one, a folder or config.json, or a hub id. Nothing is downloaded.",
    epilog="Examples: qmem profile Qwen3-14B --rank 8 --phantom a100-80; qmem profile llama-3.1-8b --batch 2",
)
