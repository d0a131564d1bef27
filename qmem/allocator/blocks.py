"""Blocks and the pool that keeps the free ones: best fit, split, merge.

It owns the doubly linked blocks of a segment and the sorted free list of one stream, and knows nothing of the
driver: where segments come from and go to is ``segments`` and ``expandable``.
"""

from bisect import bisect_left, insort

import msgspec

from qmem.allocator.rounding import GRAIN, SMALL_SEGMENT, SMALL_SIZE
from qmem.allocator.settings import UNLIMITED, AllocatorSettings

IN_USE, CACHED, UNMAPPED = range(3)
"""States of a block: handed out; free and backed by memory; free address space of an expandable segment."""

ADDRESS_BITS = 64
"""Addresses stay below this, so that ``size << 64 | address`` sorts free blocks by size, then by address."""


class Block(msgspec.Struct, eq=False):
    """A run of addresses in a segment.

    Attributes:
        address, size: where it lies, in bytes.
        pool: where it goes when it is freed.
        previous, next: the neighbours in its segment.
        range_start: first address of the expandable segment it lies in, absent in a ``cudaMalloc`` segment.
        requested: what the tensor asked for, while in use.
        idle_since: the pool's clock when it was freed last, where garbage collection is on.
    """

    address: int
    size: int
    pool: "Pool"
    state: int = CACHED
    previous: "Block | None" = None
    next: "Block | None" = None
    range_start: int | None = None
    requested: int = 0
    idle_since: int = 0

    @property
    def is_split(self) -> bool:
        """Whether it is only a part of its segment."""
        return self.previous is not None or self.next is not None

    def split(self, n: int) -> "Block":
        """Cut the first ``n`` bytes off as a block of the same state; this block keeps the rest."""
        front = Block(self.address, n, self.pool, self.state, self.previous, self, self.range_start)
        if self.previous is not None:
            self.previous.next = front
        self.previous = front
        self.address += n
        self.size -= n
        return front


class Pool:
    """The free blocks of one stream that serve small requests, or large ones.

    Streams never share blocks, so that torch's set, ordered by stream, size, age of the segment and address
    (``BlockComparatorSizeCounterAddress``), is one such pool for each stream.

    Attributes:
        page: the grain of an expandable segment.
        least_tail: what a block must have left over to be split.
        split_below: requests from this size on take their block whole.
        unmapped: free address space of expandable segments, by address.
    """

    __slots__ = ("expandable", "keys", "least_tail", "max_non_split_rounding", "max_split", "of_key", "page",
                 "split_below", "unmapped")  # fmt: skip

    def __init__(self, settings: AllocatorSettings, *, small: bool) -> None:
        splits_finely = small or settings.expandable_segments
        self.page = SMALL_SEGMENT if small else settings.large_segment_size
        self.least_tail = GRAIN if splits_finely else SMALL_SIZE + 1
        self.split_below = UNLIMITED if splits_finely else settings.max_split_size
        self.max_split = settings.max_split_size
        self.max_non_split_rounding = settings.max_non_split_rounding
        self.expandable = settings.expandable_segments
        self.keys: list[int] = []
        self.of_key: dict[int, Block] = {}
        self.unmapped: list[Block] = []

    def cached(self) -> list[Block]:
        """The cached blocks, smallest first, then by address."""
        return [self.of_key[key] for key in self.keys]

    def add(self, block: Block) -> None:
        """Keep a cached block."""
        key = block.size << ADDRESS_BITS | block.address
        insort(self.keys, key)
        self.of_key[key] = block

    def remove(self, block: Block) -> None:
        """Take a cached block out, whose size and address are those it was added with."""
        key = block.size << ADDRESS_BITS | block.address
        del self.keys[bisect_left(self.keys, key)]
        del self.of_key[key]

    def best_fit(self, n: int) -> Block | None:
        """Take out the smallest cached block of at least ``n`` bytes; among equals the one in the oldest segment.

        With ``max_split`` a block of that size serves no smaller request, and a larger request only where the
        block is little larger (``get_free_block`` in ``CUDACachingAllocator.cpp``).  The rule applies to expandable
        blocks too, which is pytorch#123548.
        """
        at = bisect_left(self.keys, n << ADDRESS_BITS)
        if at == len(self.keys):
            return None
        if self.expandable:
            at = self._spare_the_growing_end(at)
        key = self.keys[at]
        if self.max_split < UNLIMITED and self._is_oversize(n, key >> ADDRESS_BITS):
            return None
        del self.keys[at]
        return self.of_key.pop(key)

    def merge(self, block: Block) -> None:
        """Grow a free block over its free neighbours of the same state, which leave the pool."""
        before, after = block.previous, block.next
        if before is not None and before.state == block.state:
            self._forget(before)
            block.address = before.address
            block.size += before.size
            block.previous = before.previous
            if before.previous is not None:
                before.previous.next = block
        if after is not None and after.state == block.state:
            self._forget(after)
            block.size += after.size
            block.next = after.next
            if after.next is not None:
                after.next.previous = block

    def _forget(self, block: Block) -> None:
        if block.state == CACHED:
            self.remove(block)
        else:
            self.unmapped.remove(block)

    def _is_oversize(self, n: int, size: int) -> bool:
        limit = self.max_split if n < self.max_split else n + self.max_non_split_rounding
        return size >= limit

    def _spare_the_growing_end(self, at: int) -> int:
        """The first fit, or the next larger ones while they can grow less: a closed hole goes before the open end."""
        room = [self._room(at)]
        while at + 1 < len(self.keys) and (following := self._room(at + 1)) < room[-1]:
            at += 1
            room.append(following)
        return at

    def _room(self, at: int) -> int:
        """What the block can grow to: its size and the address space behind it."""
        block = self.of_key[self.keys[at]]
        after = block.next
        return block.size + (after.size if after is not None and after.state == UNMAPPED else 0)
