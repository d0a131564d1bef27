"""Temporary storage of CUB's device-wide algorithms, as torch's operators call them.

Every piece is rounded up to 256 bytes, and 255 are added to align the first.  Source: CCCL 3 (CUDA 13)
``cub/device/dispatch/dispatch_radix_sort.cuh``, ``dispatch_scan.cuh``, ``detail/temporary_storage.cuh``.  Checked on
torch 2.14.1 for capabilities 7.5 to 12.0.
"""

SINGLE_TILE = 256 * 9
"""Pairs of two 8-byte numbers that one block sorts: 256 threads, 19 items of 4 bytes or 9 of 8."""

SORT_TILES = (((9, 0), 384 * 12), ((8, 0), 384 * 10), ((0, 0), 256 * 11))
"""Such pairs that a block takes at once where several sort, from a compute capability on (``Policy900``, ``800``,
``700``)."""

SCAN_TILE = 128 * 7
"""8-byte sums that a block of a scan makes."""

DIGITS = 256
"""Values of the 8 bits that one pass sorts by."""


def sort_pairs_bytes(n: int, n_bits: int, capability: tuple[int, int]) -> int:
    """``SortPairs`` of ``n`` int64 keys of ``n_bits`` with int64 values: histograms, look-back, copies of both."""
    if n <= SINGLE_TILE:
        return 1
    passes = -(-n_bits // 8)
    tile = next(tile for least, tile in SORT_TILES if capability >= least)
    copy = 8 * n if passes > 1 else 0
    return _temporary(passes * DIGITS * 8, -(-n // tile) * DIGITS * 4, copy, copy, passes * 4)


def exclusive_sum_bytes(n: int) -> int:
    """``ExclusiveSum`` of ``n`` numbers into int64: 16 bytes for each tile and for a warp before the first."""
    return _temporary((-(-n // SCAN_TILE) + 32) * 16, 1)


def few_counts_sum_bytes() -> int:
    """``InclusiveSum`` of int32 that fit one tile: 8 bytes for it and for a warp before it."""
    return _temporary((1 + 32) * 8, 1)


def _temporary(*pieces: int) -> int:
    return sum(-(-piece // 256) * 256 for piece in pieces) + 255
