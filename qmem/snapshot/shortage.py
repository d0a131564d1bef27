"""A request that failed: what was missing, and how much of that was fragmentation.

It owns the sum, and knows nothing of other settings.
"""

from typing import NamedTuple

from qmem.allocator import AllocatorSettings
from qmem.allocator.rounding import segment_size
from qmem.snapshot.answer import Shortage
from qmem.snapshot.frames import Holders
from qmem.snapshot.history import History
from qmem.snapshot.moments import Look
from qmem.snapshot.rerun import n_retries
from qmem.units import format_bytes


def shortage(history: History, look: Look, settings: AllocatorSettings, holders: Holders) -> Shortage:
    """The last failure, at whose moment ``look`` looks.

    torch asks the driver for a whole segment, or with expandable segments for pages.  What the driver had too little
    of could have come from what is reserved and not allocated, were it in one piece: that part is fragmentation.
    """
    entry = history.entries[look.moment.event]
    free = look.fragmentation.free_bytes
    driver_has = entry.device_free or 0
    asked = entry.size if settings.expandable_segments else segment_size(entry.size, settings.large_segment_size)
    missing = max(asked - driver_has, 0)
    return Shortage(
        event=look.moment.event,
        n_failed=len(history.failures),
        request_bytes=entry.size,
        device_free_bytes=driver_has,
        free_bytes=free,
        largest_free_bytes=look.fragmentation.largest_free_bytes,
        missing_bytes=missing,
        fragmentation_bytes=min(missing, free),
        beyond_bytes=max(missing - free, 0),
        request_by=holders.name(entry.frames, entry.user_metadata),
    )


class Capacity(NamedTuple):
    """What the default pool could have had; absent where nothing ever failed.  ``because`` says how it is known."""

    n_bytes: int | None
    because: str


def capacity(history: History, failed: Shortage | None, reserved_bytes: int, peak_reserved_bytes: int) -> Capacity:
    """From the last failure, when ``reserved_bytes`` were reserved, or from releases that made room for a request."""
    if failed is not None and failed.missing_bytes:
        n_bytes = max(reserved_bytes + failed.device_free_bytes, peak_reserved_bytes)
        return Capacity(n_bytes, f"room for {format_bytes(n_bytes)}: what was reserved and free when a request failed")
    if failed is not None:
        because = (
            f"room for {format_bytes(peak_reserved_bytes)}, the most that was reserved: a request failed while the "
            "driver had enough, so that the process has a memory limit, which a snapshot does not say"
        )
        return Capacity(peak_reserved_bytes, because)
    if n_retries(history.entries):
        because = f"room for {format_bytes(peak_reserved_bytes)}, the most that was reserved: cached memory was "
        return Capacity(peak_reserved_bytes, because + "released there to make room")
    return Capacity(None, "no limit: no request failed, so that the snapshot does not say what the process could have")
