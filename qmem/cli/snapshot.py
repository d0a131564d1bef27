"""``qmem snapshot FILE``: what a torch memory snapshot says of peak, fragmentation and other allocator settings."""

from typing import TYPE_CHECKING, Any

import click

from qmem.cli.command import SectionOption, VerbCommand
from qmem.cli.stored import Form, chosen_form, output_options, put, rendered
from qmem.errors import UsageError

if TYPE_CHECKING:
    from qmem.allocator import AllocatorSettings
    from qmem.snapshot import Answer

HOLDERS, REPLAY = "What is shown", "Replay"


def show_snapshot(file: str, **given: Any) -> None:
    """Print the answer; that something failed in the snapshot's process is no failure of this one."""
    form = chosen_form(given)
    if given["top"] is not None and form in ("json", "csv"):
        raise UsageError(f"contradictory: --top and --format {form}", hint=f"{form} has all holders; leave --top out")
    total = _device_total(given["gpu"])
    settings = [_settings(text, total) for text in given["alloc_conf"]]
    if total is not None and all(each.per_process_memory_fraction == 1 for each in settings):
        raise UsageError("--gpu counts for a memory fraction in --alloc-conf only", hint="leave it out")
    from qmem.snapshot import examine, read_snapshot

    answer = examine(
        read_snapshot(file), device=given["device"], alternatives=settings, device_total=total, by=given["by"]
    )
    put(_text(answer, form, given), given["output"])


def _device_total(gpu: str | None) -> int | None:
    if gpu is None:
        return None
    from qmem.catalogue import find_gpu

    return find_gpu(gpu).total_bytes


def _settings(text: str, total: int | None) -> "AllocatorSettings":
    from qmem.allocator import parse_settings

    settings = parse_settings(text)
    if settings.per_process_memory_fraction < 1 and total is None:
        raise UsageError(
            f"--alloc-conf {text}: a memory fraction is of a card that the snapshot does not name",
            hint="name it with --gpu",
        )
    return settings


def _text(answer: "Answer", form: Form, given: dict[str, Any]) -> str:
    if form == "json":
        from qmem.report.snapshot_records import snapshot_json

        return snapshot_json(answer).decode() + "\n"
    if form == "csv":
        from qmem.report.table_export import snapshot_csv

        return snapshot_csv(answer)
    from qmem.report.snapshot_sheets import LARGEST, snapshot_sheets

    sheets = snapshot_sheets(answer, LARGEST if given["top"] is None else given["top"])
    if form == "markdown":
        from qmem.report.markdown import document

        return document(sheets)
    from qmem.report.sheets import print_sheets

    return rendered(lambda console: print_sheets(console, sheets), given["output"])


command = VerbCommand(
    "snapshot",
    callback=show_snapshot,
    params=[
        click.Argument(["file"], metavar="FILE"),
        SectionOption(
            ["--device"], section=HOLDERS, type=click.IntRange(min=0), metavar="N",
            help="The device's index.  [default: the one with the most reserved]",
        ),
        SectionOption(
            ["--by"], section=HOLDERS, type=click.Choice(("line", "module")), default="line", show_default=True,
            help="Group by line of Python or by its file.",
        ),
        SectionOption(
            ["--top"], section=HOLDERS, type=click.IntRange(min=1), metavar="N", help="Name so many.  [default: 12]"
        ),
        SectionOption(
            ["--alloc-conf"], section=REPLAY, multiple=True, metavar="CONF",
            help="Replay with these settings too, written as PYTORCH_CUDA_ALLOC_CONF; may be repeated.",
        ),
        SectionOption(
            ["--gpu"], section=REPLAY, metavar="GPU", help="The card, of which a memory fraction in --alloc-conf is."
        ),
        *output_options(),
    ],
    help="What held the memory in a torch memory snapshot, what was fragmentation, and what expandable segments would "
    "have given.\n\n"
    "FILE was written by torch.cuda.memory._dump_snapshot (torch 2.4 or later); - is stdin. Nothing in it is run, and "
    "torch is not needed. Exit code 0 whatever happened to the process that made it.",
    epilog="Example: qmem snapshot snapshot.pickle --alloc-conf max_split_size_mb:128",
)  # fmt: skip
