"""The CUDA caching allocator as a pure machine: requests in, blocks and segments out.

It owns the order of attempts that serve a request, and the counters; it knows nothing of what a request is for.
What a block, a segment and a page are is in ``blocks``, ``segments`` and ``expandable``.
Source: ``DeviceCachingAllocator::malloc`` and ``free_block`` of ``c10/cuda/CUDACachingAllocator.cpp`` (pytorch 2.10
to 2.14), checked event by event against torch 2.14.1.
Not modelled: private pools (CUDA graphs, ``MemPool``), blocks that wait for another stream (``record_stream``),
changes of the settings while the program runs.
"""

from collections.abc import Iterator

from qmem.allocator import expandable, segments
from qmem.allocator.blocks import CACHED, IN_USE, Block, Pool
from qmem.allocator.collector import AgeingPool, Clock, collect
from qmem.allocator.device import Device, SegmentEvent
from qmem.allocator.rounding import GRAIN, N_BUCKETS, SMALL_SIZE, round_to_division, segment_size
from qmem.allocator.settings import AllocatorSettings
from qmem.units import GIB, format_bytes

UNBOUNDED_DEVICE = 1024 * GIB
"""The size taken for a device that is not named; it decides only how long an expandable address range is."""


class OutOfMemory(Exception):
    """A request that no cached block and no new segment can serve.

    The allocator stays as torch leaves it: its cache is released, every live block is untouched.  ``n_bytes`` is the
    request, rounded; what is reserved and not allocated is then fragmentation.
    """

    def __init__(self, handle: int, n_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        free = reserved_bytes - allocated_bytes
        super().__init__(
            f"no room for {format_bytes(n_bytes)}: {format_bytes(allocated_bytes)} are allocated and "
            f"{format_bytes(free)} are reserved but unusable"
        )
        self.handle = handle
        self.n_bytes = n_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


class CachingAllocator:
    """One device's caching allocator.  Handles name allocations; streams are numbers.

    Attributes:
        allocated_bytes: blocks in use, as ``torch.cuda.memory_allocated`` counts them (unsplit tails included).
        requested_bytes: what the tensors in those blocks asked for.
        peak_allocated_bytes: the highest ``allocated_bytes`` since ``reset_peaks``.
        peak_allocated_handle, peak_reserved_handle: the allocation that set the peak, absent where none did yet.
        n_retries: attempts after all cached blocks were released (``num_alloc_retries``).
        n_ooms: requests that failed (``num_ooms``).
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity: int | None = None,
        *,
        device_total: int | None = None,
    ) -> None:
        """``capacity`` is what the process can have; ``device_total`` the whole device, by default the same.

        The memory fraction is of the whole device.  Both are bytes; without them nothing runs out.
        """
        self.settings = settings or AllocatorSettings()
        total = capacity if device_total is None else device_total
        self.device = Device(capacity, UNBOUNDED_DEVICE if total is None else total)
        fraction = self.settings.per_process_memory_fraction
        self.limit = int(fraction * total) if fraction < 1 and total is not None else None
        self.allocated_bytes = self.requested_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_allocated_handle: int | None = None
        self.peak_reserved_handle: int | None = None
        self.n_retries = self.n_ooms = 0
        self._live: dict[int, Block | None] = {}
        self._small: dict[int, Pool] = {}
        self._large: dict[int, Pool] = {}
        self._clock = Clock()
        self._divisions = self.settings.roundup_power2_divisions
        self._rounds_to_grain = self._divisions == (0,) * N_BUCKETS

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all segments or mapped pages (``torch.cuda.memory_reserved``)."""
        return self.device.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The highest ``reserved_bytes`` since ``reset_peaks``."""
        return self.device.peak_reserved_bytes

    @property
    def history(self) -> list[SegmentEvent]:
        """The calls to the driver so far."""
        return self.device.history

    def malloc(self, handle: int, n_bytes: int, stream: int = 0) -> int:
        """Serve a request under a handle that is not in use: the bytes of its block; 0 bytes touch nothing.

        Raises:
            OutOfMemory: the capacity, or the memory limit, is exhausted.
        """
        if n_bytes == 0:
            self._live[handle] = None
            return 0
        n = (n_bytes + GRAIN - 1) & -GRAIN if self._rounds_to_grain else round_to_division(n_bytes, self._divisions)
        pools = self._small if n <= SMALL_SIZE else self._large
        pool = pools.get(stream) or self._new_pool(pools, stream)
        block = pool.best_fit(n)
        if block is None:
            block = self._obtain(pool, n, handle)
        if block.size - n >= pool.least_tail and n < pool.split_below:
            front = block.split(n)
            pool.add(block)
            block = front
        block.state = IN_USE
        block.requested = n_bytes
        self.hold(handle, block)
        return block.size

    def free(self, handle: int) -> None:
        """Take back what the handle holds.  Its memory stays reserved.

        Raises:
            KeyError: the handle is not in use.
        """
        block = self._live.pop(handle)
        if block is None:
            return
        self.allocated_bytes -= block.size
        self.requested_bytes -= block.requested
        block.state = CACHED
        pool = block.pool
        if block.previous is not None or block.next is not None:
            pool.merge(block)
        pool.add(block)

    def pool(self, stream: int, *, small: bool) -> Pool:
        """Where a stream's free blocks for small, or large, requests lie."""
        pools = self._small if small else self._large
        return pools.get(stream) or self._new_pool(pools, stream)

    def hold(self, handle: int, block: Block) -> None:
        """Count a block that is in use, and lies in a segment of this machine, as what the handle holds."""
        self._live[handle] = block
        self.requested_bytes += block.requested
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
            self.peak_allocated_handle = handle

    def empty_cache(self) -> None:
        """Give back all segments that are wholly free, and all free pages (``torch.cuda.empty_cache``)."""
        release = expandable.release_pages if self.settings.expandable_segments else segments.release_unsplit
        for pool in self._in_order(self._large) + self._in_order(self._small):
            release(self.device, pool)

    def reset_peaks(self) -> None:
        """Peaks start again from what is held now (``torch.cuda.reset_peak_memory_stats``)."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.device.peak_reserved_bytes = self.device.reserved_bytes
        self.peak_allocated_handle = self.peak_reserved_handle = None

    def block_bytes(self, handle: int) -> int:
        """Bytes of the block that the handle holds: its request, rounded, and an unsplit tail."""
        block = self._live[handle]
        return 0 if block is None else block.size

    def address(self, handle: int) -> int | None:
        """Where the block lies; a request of 0 bytes has no address."""
        block = self._live[handle]
        return None if block is None else block.address

    def blocks(self) -> list[Block]:
        """All blocks that are backed by memory, by address."""
        in_use = (block for block in self._live.values() if block is not None)
        return sorted((*self._cached(), *in_use), key=lambda block: block.address)

    def fragmented_bytes(self) -> int:
        """Free bytes that ``empty_cache`` could not give back, because something in their segment or page is in use."""
        return sum(_stuck_bytes(block) for block in self._cached())

    def _cached(self) -> Iterator[Block]:
        return (block for pools in (self._small, self._large) for pool in pools.values() for block in pool.cached())

    def _new_pool(self, pools: dict[int, Pool], stream: int) -> Pool:
        ages = self._collects and pools is self._large
        pool = AgeingPool(self.settings, self._clock) if ages else Pool(self.settings, small=pools is self._small)
        pools[stream] = pool
        return pool

    @staticmethod
    def _in_order(pools: dict[int, Pool]) -> list[Pool]:
        """Pools by stream, the order in which torch gives their blocks back."""
        return [pools[stream] for stream in sorted(pools)]

    @property
    def _collects(self) -> bool:
        return self.limit is not None and self.settings.garbage_collection_threshold > 0

    def _obtain(self, pool: Pool, n: int, handle: int) -> Block:
        """A block that was not cached: from the driver, if need be after giving it back what lies idle."""
        peak = self.device.peak_reserved_bytes
        block = self._ask(pool, n)
        if self.device.peak_reserved_bytes > peak:
            self.peak_reserved_handle = handle
        if block is None:
            self.n_ooms += 1
            raise OutOfMemory(handle, n, self.allocated_bytes, self.reserved_bytes)
        return block

    def _ask(self, pool: Pool, n: int) -> Block | None:
        if self._collects and self.limit is not None:
            threshold = int(self.settings.garbage_collection_threshold * self.limit)
            collect(self.device, self._in_order(self._large), self._clock, threshold)
        block = self._grow(pool, n)
        if block is None and not pool.expandable and segments.release_oversize(self.device, pool, n):
            block = self._grow(pool, n)
        if block is None:
            self.empty_cache()
            self.n_retries += 1
            block = self._grow(pool, n)
        return block

    def _grow(self, pool: Pool, n: int) -> Block | None:
        large = self.settings.large_segment_size
        if self.limit is not None and self.reserved_bytes + segment_size(n, large) > self.limit:
            return None
        if pool.expandable:
            return expandable.grow(self.device, pool, n)
        return segments.grow(self.device, pool, n, large)


def _stuck_bytes(block: Block) -> int:
    if block.range_start is None:
        return block.size if block.is_split else 0
    start, end = expandable.whole_pages(block)
    return block.size - max(end - start, 0)
