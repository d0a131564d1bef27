"""Segments from ``cudaMalloc``: one for each request that no cached block can serve.

It owns how such segments come and go, and knows nothing of when: that is ``CachingAllocator``.
Source of this module: ``alloc_block``, ``release_block`` and ``release_available_cached_blocks`` of
``c10/cuda/CUDACachingAllocator.cpp`` (pytorch 2.10 to 2.14).
"""

from bisect import bisect_left

from qmem.allocator.blocks import ADDRESS_BITS, Block, Pool
from qmem.allocator.device import Device
from qmem.allocator.rounding import segment_size
from qmem.allocator.settings import UNLIMITED


def grow(device: Device, pool: Pool, n: int, large_segment: int) -> Block | None:
    """A new segment as one block, for a rounded request of ``n`` bytes; absent where the device has no more."""
    size = segment_size(n, large_segment)
    if not device.has(size):
        return None
    address = device.new_addresses(size)
    device.reserve("segment_alloc", address, size)
    return Block(address, size, pool)


def release(device: Device, block: Block) -> None:
    """Give the segment of an unsplit cached block back (``cudaFree``)."""
    block.pool.remove(block)
    device.release("segment_free", block.address, block.size)


def release_unsplit(device: Device, pool: Pool) -> None:
    """Give back every segment that is wholly free."""
    for block in pool.cached():
        if not block.is_split:
            release(device, block)


def release_oversize(device: Device, pool: Pool, n: int) -> bool:
    """Give back oversize segments for a request of ``n`` bytes: one that is large enough, or several smaller.

    Only with ``max_split_size``, whose blocks a smaller request may not use.  Whether enough came free.  A cached block
    of at least ``n`` bytes is oversize here, or it would have been the best fit.
    """
    if pool.max_split == UNLIMITED:
        return False
    cached = pool.cached()
    at = bisect_left(pool.keys, n << ADDRESS_BITS)
    if at < len(cached):
        release(device, cached[at])
        return True
    freed = 0
    while cached and freed < n and cached[-1].size >= pool.max_split:
        freed += cached[-1].size
        release(device, cached.pop())
    return freed >= n
