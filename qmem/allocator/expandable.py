"""Expandable segments: a range of addresses for each pool, backed with memory page by page as it is needed.

It owns mapping and unmapping, and knows nothing of when: that is ``CachingAllocator``.
Source of this module: ``ExpandableSegment``, ``find_expandable_block``, ``map_block`` and ``unmap_block`` of
``c10/cuda/CUDACachingAllocator.cpp`` (pytorch 2.10 to 2.14).
"""

from bisect import insort
from operator import attrgetter

from qmem.allocator.blocks import CACHED, IN_USE, UNMAPPED, Block, Pool
from qmem.allocator.device import Device

_BY_ADDRESS = attrgetter("address")


def grow(device: Device, pool: Pool, n: int) -> Block | None:
    """A free block of at least ``n`` bytes, made by mapping pages at the lowest place that has room.

    Absent where the device has no more memory; pages that were mapped before that stay in the pool.
    """
    block = _lowest_place(pool, n) or _new_range(device, pool)
    if block.state == UNMAPPED and not _map(device, block, min(block.size, n)):
        return None
    while block.size < n:
        following = block.next
        assert following is not None
        if not _map(device, following, min(n - block.size, following.size)):
            return None
        block = following
    pool.remove(block)
    return block


def release_pages(device: Device, pool: Pool) -> None:
    """Give back the pages that lie wholly in cached blocks, and drop the ranges of which nothing is left."""
    for block in pool.cached():
        if _unmap(device, block) and not block.is_split:
            pool.unmapped.remove(block)


def whole_pages(block: Block) -> tuple[int, int]:
    """First and last address of the pages that lie wholly in a block; nothing where the last is not larger."""
    assert block.range_start is not None
    page, start = block.pool.page, block.address - block.range_start
    return block.range_start + -(-start // page) * page, block.range_start + (start + block.size) // page * page


def range_bytes(device: Device, pool: Pool) -> int:
    """The address space of one expandable segment: nine eighths of the device's memory, in whole pages."""
    return -(-(device.total + device.total // 8) // pool.page) * pool.page


def _lowest_place(pool: Pool, n: int) -> Block | None:
    """The first free block, by address, with which a run of free blocks of ``n`` bytes begins."""
    for unmapped in pool.unmapped:
        before = unmapped.previous
        start = before if before is not None and before.state != IN_USE else unmapped
        room = 0
        block: Block | None = start
        while room < n and block is not None and block.state != IN_USE:
            room, block = room + block.size, block.next
        if room >= n:
            return start
    return None


def _new_range(device: Device, pool: Pool) -> Block:
    """A new expandable segment, nothing of it backed by memory."""
    size = range_bytes(device, pool)
    address = device.new_addresses(size)
    block = Block(address, size, pool, UNMAPPED, range_start=address)
    insort(pool.unmapped, block, key=_BY_ADDRESS)
    return block


def _map(device: Device, block: Block, n: int) -> bool:
    """Back the first ``n`` bytes of an unmapped block with whole pages, and merge them with what is free around."""
    pool = block.pool
    size = -(-n // pool.page) * pool.page
    if not device.has(size):
        return False
    device.reserve("segment_map", block.address, size)
    pool.unmapped.remove(block)
    if size < block.size:
        insort(pool.unmapped, _cut_tail(block, size), key=_BY_ADDRESS)
    block.state = CACHED
    pool.merge(block)
    pool.add(block)
    return True


def _unmap(device: Device, block: Block) -> bool:
    """Take the pages that lie wholly in a cached block from it; what is left at its ends stays cached."""
    start, end = whole_pages(block)
    if start >= end:
        return False
    pool = block.pool
    pool.remove(block)
    if start > block.address:
        pool.add(block.split(start - block.address))
    if end < block.address + block.size:
        pool.add(_cut_tail(block, end - block.address))
    block.state = UNMAPPED
    pool.merge(block)
    insort(pool.unmapped, block, key=_BY_ADDRESS)
    device.release("segment_unmap", start, end - start)
    return True


def _cut_tail(block: Block, n: int) -> Block:
    """Cut off what lies behind the first ``n`` bytes, as a block of the same state."""
    tail = Block(block.address + n, block.size - n, block.pool, block.state, block, block.next, block.range_start)
    if block.next is not None:
        block.next.previous = tail
    block.next = tail
    block.size = n
    return tail
