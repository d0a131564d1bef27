"""A phantom GPU: the CUDA build of torch on a machine without one.

Allocation, capacity and out of memory are real; kernels are counted and never run.  Its numbers are simulated, and are
to be called so.  Nothing here imports torch, except the guard while it watches.
"""

from qmem.phantom.libraries import Availability, availability, missing_symbols
from qmem.phantom.loader import (
    PhantomDevice,
    Stats,
    describe,
    is_loaded,
    launched_kernels,
    load,
    mark,
    reset_peaks,
    stats,
)

__all__ = [
    "Availability", "PhantomDevice", "Stats", "availability", "describe", "is_loaded", "launched_kernels", "load",
    "mark", "missing_symbols", "reset_peaks", "stats",
]  # fmt: skip
