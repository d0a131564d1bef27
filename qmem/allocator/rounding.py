"""Sizes: what a request becomes before the allocator looks for a block, and what it asks the driver for.

It owns the constants of the CUDA caching allocator and knows nothing of blocks.
Source: torch 2.14.1, ``c10/core/AllocatorConfig.h``; the functions follow ``round_size`` and
``get_allocation_size`` of ``c10/cuda/CUDACachingAllocator.cpp``.
"""

from qmem.units import MIB

GRAIN = 512
"""``kMinBlockSize``: every block is a multiple of it."""
SMALL_SIZE = 1 * MIB
"""``kSmallSize``: a request of at most this, rounded, is served from the small pool."""
SMALL_SEGMENT = 2 * MIB
"""``kSmallBuffer``: a segment, or an expandable page, of the small pool."""
MIN_LARGE = 10 * MIB
"""``kMinLargeAlloc``: from here on a request gets a segment of its own size."""
ROUND_LARGE = 2 * MIB
"""``kRoundLarge``: the grain of those segments."""
LARGE_SEGMENT = 20 * MIB
"""``large_segment_size_`` by default (``kLargeBuffer`` before it became a setting)."""
N_BUCKETS = 16
"""``kRoundUpPowerOfTwoIntervals``: powers of two from 1 MiB to 64 GiB."""


def round_to_grain(n: int) -> int:
    """Bytes a request of ``n`` bytes occupies at least: the next multiple of 512; nothing is allocated for 0."""
    return (n + GRAIN - 1) & -GRAIN


def bucket(n: int) -> int:
    """The ``roundup_power2_divisions`` interval of a size: 0 below 2 MiB, one more at each power of two, at most 15."""
    return min(max(n.bit_length() - SMALL_SIZE.bit_length(), 0), N_BUCKETS - 1)


def round_to_division(n: int, divisions: tuple[int, ...]) -> int:
    """Bytes a request of ``n`` bytes becomes under ``roundup_power2_divisions``.

    Between two powers of two lie ``divisions[bucket(n)]`` equal steps; a request is rounded up to the next.  The
    setting does not apply to a request of up to 512 bytes times the divisions.
    """
    steps = divisions[bucket(n)]
    if steps <= 1 or n <= GRAIN * steps:
        return round_to_grain(n)
    step = (1 << (n.bit_length() - 1)) // steps
    return -(-n // step) * step


def segment_size(n: int, large_segment: int = LARGE_SEGMENT) -> int:
    """Bytes asked of ``cudaMalloc`` for a rounded request of ``n`` bytes that no cached block can serve."""
    if n <= SMALL_SIZE:
        return SMALL_SEGMENT
    return large_segment if n < MIN_LARGE else -(-n // ROUND_LARGE) * ROUND_LARGE
