"""The grid: which jobs are run on which card, and where what they measured is kept.

The jobs were drawn at random and committed before the estimate was checked against them.  A changed job needs its
reason in the report (``CHANGES``).
"""

import lzma
from pathlib import Path
from typing import NamedTuple

import msgspec

from qmem.errors import UsageError
from qmem.job import Job
from qmem.ledger import Ledger, from_json, to_json
from qmem.profiler.storing import write_whole

GRID = Path(__file__).parent / "grid.json"
MEASURED = Path("reports") / "accuracy" / "measured"

_NO_DROPOUT = "peft refuses dropout on experts that are parameters: drawn with dropout, it runs without"

CHANGES: dict[str, str] = {
    "081-Qwen3-30B-A3B": _NO_DROPOUT,
    "088-Mixtral-8x7B-v0.1": _NO_DROPOUT,
    "094-Qwen3-30B-A3B": "drawn as gpt-oss-20b, whose checkpoint stores mxfp4 weights, which qmem does not model",
}
"""Why a job of the grid is no longer the one that was drawn, by its name."""

CAPACITY = 1 << 40
"""Bytes of the simulated card: enough for every job, so that no peak is cut off."""


class Entry(NamedTuple):
    """A job of the grid and the card whose kernels it runs."""

    name: str
    job: Job
    gpu: str


class Refused(msgspec.Struct, frozen=True):
    """Why a job was not measured."""

    refused: str


class _Drawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    job: Job
    gpu: str


def read_grid(path: Path = GRID) -> tuple[Entry, ...]:
    """The jobs of a grid, in its order.

    Raises:
        UsageError: the file is no grid.
    """
    try:
        drawn = msgspec.json.decode(path.read_bytes(), type=dict[str, _Drawn])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path} is not a grid: {error}") from error
    return tuple(Entry(name, one.job, one.gpu) for name, one in drawn.items())


def read_measured(folder: Path, name: str) -> Ledger | Refused | None:
    """What a job measured, or why it was refused; ``None`` where it has not run.

    Raises:
        UsageError: what is stored is neither.
    """
    path = _path(folder, name)
    if not path.exists():
        return None
    try:
        text = lzma.decompress(path.read_bytes())
    except lzma.LZMAError as error:
        raise UsageError(f"{path} is damaged: {error}", hint="delete it and run again") from error
    if text.startswith(b'{"refused"'):
        return msgspec.json.decode(text, type=Refused)
    return from_json(text)


def store_measured(folder: Path, name: str, measured: Ledger | Refused) -> None:
    """Keep what a job measured: written beside its place, then renamed."""
    text = msgspec.json.encode(measured) if isinstance(measured, Refused) else to_json(measured)
    write_whole(_path(folder, name), lzma.compress(text, preset=9))


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json.xz"
