"""Garbage collection: cached segments that have not been reused for long go back before the memory limit is met.

It owns the age of cached blocks and the choice among them.  It works only with
``garbage_collection_threshold`` and a memory limit.
Source: ``garbage_collect_cached_blocks`` of ``c10/cuda/CUDACachingAllocator.cpp`` (pytorch 2.10 to 2.14).
"""

from collections.abc import Iterable

from qmem.allocator import segments
from qmem.allocator.blocks import Block, Pool
from qmem.allocator.device import Device
from qmem.allocator.settings import AllocatorSettings


class Clock:
    """Counts the searches for a large block; the age of a block is the searches since it was freed."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


class AgeingPool(Pool):
    """A pool that knows since when each block lies idle.  All streams share the clock."""

    __slots__ = ("clock",)

    def __init__(self, settings: AllocatorSettings, clock: Clock) -> None:
        super().__init__(settings, small=False)
        self.clock = clock

    def add(self, block: Block) -> None:
        """Keep a cached block, from now on idle."""
        block.idle_since = self.clock.now
        super().add(block)

    def best_fit(self, n: int) -> Block | None:
        """Take out the best fit, and count the search."""
        self.clock.now += 1
        return super().best_fit(n)


def collect(device: Device, pools: Iterable[Pool], clock: Clock, threshold_bytes: int) -> None:
    """Bring reserved memory down to the threshold, if it is above: the blocks of average age or more go first."""
    wanted = device.reserved_bytes - threshold_bytes
    idle = [block for pool in pools for block in pool.cached() if not block.is_split]
    while wanted > 0 and idle:
        average = sum(clock.now - block.idle_since for block in idle) / len(idle)
        old = [block for block in idle if clock.now - block.idle_since >= average and block.range_start is None]
        if not old:
            return
        for block in old:
            segments.release(device, block)
            wanted -= block.size
        idle = [block for block in idle if block not in old]
