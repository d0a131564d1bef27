"""Replay: a trace run through the caching allocator.

It owns what is read off the allocator and when; it knows nothing of what the events are for.
"""

from collections.abc import Iterator

import msgspec

from qmem.allocator.allocator import CachingAllocator, OutOfMemory
from qmem.allocator.settings import AllocatorSettings
from qmem.ledger import Mark, Trace


class PhaseUse(msgspec.Struct, frozen=True):
    """Memory during one phase, in bytes.

    Peaks are the highest values since the phase began, as after ``torch.cuda.reset_peak_memory_stats()`` there; the
    others are what stands when its last event is done.  A ``torch.cuda.empty_cache()`` at a mark comes before the
    first event of the phase that begins, and before its peaks are reset.
    ``fragmented_bytes`` is the part of the cache (reserved and not allocated) that ``empty_cache`` cannot give back.
    """

    mark: Mark
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    fragmented_bytes: int


class Failure(msgspec.Struct, frozen=True):
    """Where the job ran out of memory: the event, its bytes, and what was held once all that can go back had gone.

    ``reserved_bytes - allocated_bytes`` is then fragmentation.
    """

    event: int
    n_bytes: int
    allocated_bytes: int
    reserved_bytes: int


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What the allocator did with a trace.  Bytes; an event is an index into the trace, absent in an empty one.

    ``block_bytes`` says by handle what was handed out: the request, rounded, with a tail not worth splitting off.
    With ``out_of_memory`` everything else is as of that event, and ``phases`` has only those that ended before it.
    """

    block_bytes: list[int]
    phases: tuple[PhaseUse, ...]
    peak_allocated_bytes: int
    peak_allocated_event: int | None
    peak_reserved_bytes: int
    peak_reserved_event: int | None
    n_retries: int
    out_of_memory: Failure | None = None


def replay(
    trace: Trace, settings: AllocatorSettings, capacity: int | None = None, *, device_total: int | None = None
) -> Replay:
    """Run all events of a trace.

    ``capacity`` is what the process can have (the device without its context and other processes), ``device_total``
    the whole device; see ``CachingAllocator``.  Marks are in order; events before the first belong to no phase.
    """
    allocator = CachingAllocator(settings, capacity, device_total=device_total)
    phases: list[PhaseUse] = []
    blocks = [0] * len(trace.sizes)
    peaks = _Peaks()
    failure = None
    try:
        _run(allocator, trace, blocks, 0, trace.marks[0].event if trace.marks else len(trace.events))
        peaks.note(allocator)
        for mark, end in _spans(trace):
            _begin(allocator, mark)
            _run(allocator, trace, blocks, mark.event, end)
            peaks.note(allocator)
            phases.append(_use(allocator, mark))
    except OutOfMemory as error:
        peaks.note(allocator)
        failure = Failure(_event(trace, error.handle), error.n_bytes, error.allocated_bytes, error.reserved_bytes)
    return Replay(
        block_bytes=blocks,
        phases=tuple(phases),
        peak_allocated_bytes=peaks.allocated,
        peak_allocated_event=None if peaks.allocated_by is None else _event(trace, peaks.allocated_by),
        peak_reserved_bytes=peaks.reserved,
        peak_reserved_event=None if peaks.reserved_by is None else _event(trace, peaks.reserved_by),
        n_retries=allocator.n_retries,
        out_of_memory=failure,
    )


class _Peaks:
    """The highest peaks of all phases, and the allocations that set them."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self.allocated_by: int | None = None
        self.reserved_by: int | None = None

    def note(self, allocator: CachingAllocator) -> None:
        if allocator.peak_allocated_bytes > self.allocated:
            self.allocated, self.allocated_by = allocator.peak_allocated_bytes, allocator.peak_allocated_handle
        if allocator.peak_reserved_bytes > self.reserved:
            self.reserved, self.reserved_by = allocator.peak_reserved_bytes, allocator.peak_reserved_handle


def _run(allocator: CachingAllocator, trace: Trace, blocks: list[int], start: int, end: int) -> None:
    malloc, free, sizes = allocator.malloc, allocator.free, trace.sizes
    for handle in trace.events[start:end]:
        if handle >= 0:
            blocks[handle] = malloc(handle, sizes[handle])
        else:
            free(~handle)


def _spans(trace: Trace) -> Iterator[tuple[Mark, int]]:
    """Each mark with the event before which its phase ends."""
    ends = [mark.event for mark in trace.marks]
    return zip(trace.marks, [*ends[1:], len(trace.events)], strict=False)


def _begin(allocator: CachingAllocator, mark: Mark) -> None:
    if mark.empties_cache:
        allocator.empty_cache()
    allocator.reset_peaks()


def _use(allocator: CachingAllocator, mark: Mark) -> PhaseUse:
    return PhaseUse(
        mark=mark,
        peak_allocated_bytes=allocator.peak_allocated_bytes,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        allocated_bytes=allocator.allocated_bytes,
        reserved_bytes=allocator.reserved_bytes,
        fragmented_bytes=allocator.fragmented_bytes(),
    )


def _event(trace: Trace, handle: int) -> int:
    return trace.events.index(handle)
