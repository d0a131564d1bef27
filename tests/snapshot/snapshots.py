"""Snapshots for tests: the stored ones, and small ones made by hand."""

import lzma
import pickle
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
GOLDENS = ("out-of-memory.pickle", "late.pickle.xz", "late-expandable.pickle.xz", "cut.pickle.xz")
"""``record.py`` beside them makes them again."""
MIB = 1 << 20
BASE = 0x7F00_0000_0000


def content(name):
    stored = (FOLDER / name).read_bytes()
    return lzma.decompress(stored) if name.endswith(".xz") else stored


def tree(name):
    """A stored snapshot as plain Python; these files are the project's own."""
    return pickle.loads(content(name))  # noqa: S301


def block(address, size, *, held, requested=None):
    state = "active_allocated" if held else "inactive"
    return {"address": address, "size": size, "requested_size": requested or size, "state": state, "frames": []}


def segment(address, *blocks, stream=0, pool=(0, 0), kind="large", device=0):
    held = sum(one["size"] for one in blocks if one["state"] != "inactive")
    return {
        "device": device, "address": address, "total_size": sum(one["size"] for one in blocks), "stream": stream,
        "allocated_size": held, "active_size": held, "segment_type": kind, "segment_pool_id": pool,
        "is_expandable": False, "blocks": list(blocks),
    }  # fmt: skip


def event(action, address, size, **more):
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 1, **more}


def failure(size, device_free, **more):
    return {"action": "oom", "device_free": device_free, "size": size, "stream": 0, "time_us": 1, **more}


def half_full(*events):
    """A segment of 40 MiB that was filled by two requests, of which the second is freed; then ``events``."""
    first, second = BASE, BASE + 20 * MIB
    begin = [
        event("segment_alloc", first, 40 * MIB), event("alloc", first, 40 * MIB),
        event("free_requested", first, 40 * MIB), event("free_completed", first, 40 * MIB),
        event("alloc", first, 20 * MIB), event("alloc", second, 20 * MIB), event("free_completed", second, 20 * MIB),
    ]  # fmt: skip
    left = segment(first, block(first, 20 * MIB, held=True), block(second, 20 * MIB, held=False))
    return {"segments": [left], "device_traces": [[*begin, *events]]}
