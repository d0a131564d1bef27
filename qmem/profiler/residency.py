"""Where managed pages lie, asked of the driver itself.

``cuMemGetLocationInfo`` came with CUDA 13.4 (CUDA Driver API, Unified Addressing): one location for each region of a
range.  An older driver has no such function, and one without concurrent managed access says that it cannot tell.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable
from typing import Any

ON_DEVICE = 1
"""``CU_MEM_LOCATION_TYPE_DEVICE``."""

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class Location(ctypes.Structure):
    """``CUmemLocation``: what kind of place, and which of them."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


def bytes_on_device(ranges: Iterable[tuple[int, int]], device: int) -> int | None:
    """How many bytes of managed ranges (address and size) lie on a device, counted in pages of the host.

    ``None`` without ranges, and where the driver cannot tell.  CUDA must be up.
    """
    ask = _question()
    if ask is None:
        return None
    found = [_on_device(ask, address, n_bytes, device) for address, n_bytes in ranges]
    known = [n_bytes for n_bytes in found if n_bytes is not None]
    return sum(known) if found and len(known) == len(found) else None


def _question() -> Any:
    """The driver's function, where it has one."""
    try:
        ask = ctypes.CDLL(DRIVER).cuMemGetLocationInfo
    except (OSError, AttributeError):
        return None
    ask.argtypes = (ctypes.c_uint64, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(Location))
    return ask


def _on_device(ask: Any, address: int, n_bytes: int, device: int) -> int | None:
    page = min(mmap.PAGESIZE, n_bytes)
    n_pages = -(-n_bytes // page)
    locations = (Location * n_pages)()
    if ask(address, n_bytes, page, page, locations):
        return None
    there = sum(page for one in locations if one.type == ON_DEVICE and one.id == device)
    last = locations[n_pages - 1]
    is_last_there = last.type == ON_DEVICE and last.id == device
    return there - (n_pages * page - n_bytes if is_last_there else 0)
