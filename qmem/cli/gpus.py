"""``qmem gpus [FILTER]``: the catalogue's cards, with the memory that their driver reports."""

from typing import Any

import click

from qmem.catalogue.gpus import Gpu, all_gpus
from qmem.cli.columns import columns
from qmem.cli.command import VerbCommand, json_option
from qmem.cli.streams import write_note, write_result
from qmem.ledger import SCHEMA_VERSION
from qmem.units import GIB

TITLES = ("gpu", "name", "GiB", "cc", "context")
LEGEND = (
    "GiB: the total that CUDA reports, less than the card is sold with. cc: compute capability. context: MiB that a "
    "CUDA context takes, a prior and not measured. Sources: qmem gpus --json"
)


def show_gpus(words: tuple[str, ...], as_json: bool) -> None:
    """Print the cards whose id or name contains every word."""
    found = [gpu for gpu in all_gpus() if _matches(gpu, words)]
    if as_json:
        import msgspec

        listed = {"schema_version": SCHEMA_VERSION, "gpus": [_facts(gpu) for gpu in found]}
        write_result(msgspec.json.encode(listed).decode() + "\n")
    elif found:
        write_result(columns(TITLES, [(_cells(gpu), _remark(gpu)) for gpu in found], ("GiB", "cc"), LEGEND))
    else:
        write_note(f"no GPU of the catalogue matches {' '.join(words)!r}; qmem gpus lists all of them")


def _matches(gpu: Gpu, words: tuple[str, ...]) -> bool:
    names = " ".join((gpu.id, gpu.name, *gpu.aliases)).casefold()
    return all(word.casefold() in names for word in words)


def _cells(gpu: Gpu) -> tuple[str, str, str, str, str]:
    prior = gpu.context_prior
    context = f"{prior.low_mib}-{prior.high_mib}" if prior else "-"
    name = gpu.name.removeprefix("NVIDIA ")
    return (gpu.id, name, f"{gpu.total_bytes / GIB:.2f}", gpu.compute_capability or "-", context)


def _remark(gpu: Gpu) -> str:
    unsure = f"unsure: {', '.join(gpu.unsure_fields)}" if gpu.unsure_fields else ""
    return "; ".join(filter(None, (unsure, gpu.not_modelled and f"not modelled: {gpu.not_modelled}")))


def _facts(gpu: Gpu) -> dict[str, Any]:
    prior = gpu.context_prior
    return {
        "id": gpu.id,
        "name": gpu.name,
        "aliases": gpu.aliases,
        "total_bytes": gpu.total_bytes,
        "counter": gpu.counter,
        "source": gpu.source,
        "compute_capability": gpu.compute_capability,
        "gfx": gpu.gfx,
        "context_bytes": prior.n_bytes if prior else None,
        "context_source": prior.source if prior else None,
        "unsure_fields": gpu.unsure_fields,
        "note": gpu.note,
        "not_modelled": gpu.not_modelled,
    }


command = VerbCommand(
    "gpus",
    callback=show_gpus,
    params=[click.Argument(["words"], nargs=-1, metavar="[FILTER]..."), json_option()],
    help="List the GPUs that qmem knows by name; a filter is words of an id or name.",
    epilog="Example: qmem gpus rtx 40",
)
