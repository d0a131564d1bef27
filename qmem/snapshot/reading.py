"""A snapshot from a file, which anybody may have made.

It owns the order in which a file is trusted a little more: its size, its words, its structure, its types.
"""

import gc
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import msgspec

from qmem.errors import UsageError
from qmem.snapshot.alphabet import check_alphabet
from qmem.snapshot.records import Snapshot
from qmem.units import GIB, format_bytes

MOST_BYTES = 4 * GIB
"""The largest file that is read; what is made of it in memory is about ten times as large."""
LARGEST = 1 << 40
"""The largest allocation, segment or sum of segments that is believed: 1 TiB, more than any GPU has."""
_HINT = "make it with torch.cuda.memory._dump_snapshot"
STDIN = "-"


def read_snapshot(path: str) -> Snapshot:
    """The snapshot in a file, or on stdin for ``-``.

    Raises:
        UsageError: there is no such file, it is no snapshot, it is cut short, or its figures cannot be.
    """
    name = "stdin" if path == STDIN else path
    try:
        return parse_snapshot(_read(path))
    except UsageError as error:
        raise UsageError(f"{name}: {error.message}", hint=error.hint) from error


def parse_snapshot(content: bytes) -> Snapshot:
    """The snapshot that a pickle holds.

    Raises:
        UsageError: it holds none.
    """
    check_alphabet(content)
    with _collector_off():
        tree = _load(content)
        if not isinstance(tree, dict) or "segments" not in tree:
            raise UsageError("not a memory snapshot: it has no segments", hint=_HINT)
        _check_lengths(tree, len(content))
        snapshot = _typed(tree)
    _check_figures(snapshot)
    return snapshot


def _read(path: str) -> bytes:
    try:
        if path == STDIN:
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs start-up time
                content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else error or "no memory for it"
        raise UsageError(f"cannot be read: {reason}", hint="name a file of torch.cuda.memory._dump_snapshot") from error
    if len(content) > MOST_BYTES:
        raise UsageError(
            f"larger than the {format_bytes(MOST_BYTES)} that are read",
            hint="record with stacks='python' or with a smaller max_entries",
        )
    return content


class _Unpickler(pickle.Unpickler):
    """Makes numbers, text, lists, dicts and tuples, whatever a pickle asks for."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every global."""
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _load(content: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except MemoryError as error:
        raise UsageError(
            "there is no memory for what this snapshot holds", hint="read it on a larger machine"
        ) from error
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"not a memory snapshot: its pickle is broken ({error})", hint=_HINT) from error


def _check_lengths(tree: dict[Any, Any], n_bytes: int) -> None:
    """A list can stand in a pickle once and be named many times: what would be longer than the file is refused."""
    n_items = 0
    for key, inner in (("segments", "blocks"), ("device_traces", None)):
        for item in _listed(tree.get(key)):
            n_items += len(_listed(item.get(inner) if inner and isinstance(item, dict) else item)) + 1
    if n_items > n_bytes:
        raise UsageError(f"not a memory snapshot: {n_bytes:,} bytes cannot hold {n_items:,} blocks and events")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _typed(tree: dict[Any, Any]) -> Snapshot:
    named = {key: tree[key] for key in ("segments", "device_traces", "allocator_settings") if key in tree}
    try:
        return msgspec.convert(named, Snapshot)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise UsageError(f"not a memory snapshot of torch 2.4 or later: {error}", hint=_HINT) from error


def _check_figures(snapshot: Snapshot) -> None:
    sizes = [segment.total_size for segment in snapshot.segments]
    sizes += [entry.size for trace in snapshot.device_traces for entry in trace if entry.action != "oom"]
    if max(sizes, default=0) > LARGEST:
        raise UsageError(f"not a memory snapshot: it has a segment or an event of {max(sizes):,} bytes")
    for segment in snapshot.segments:
        if sum(block.size for block in segment.blocks) != segment.total_size:
            raise UsageError(
                f"not a whole memory snapshot: the blocks of the segment at {segment.address:#x} do not add up to its "
                f"{segment.total_size:,} bytes",
                hint=_HINT,
            )


@contextmanager
def _collector_off() -> Iterator[None]:
    """Millions of small objects are made, none of them garbage: collecting would take longer than making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
