"""The history of one device: its events in order, and what was there before the first of them.

A history begins where recording was switched on, or where ``max_entries`` cut it.  What lay on the device then is
found by going back from the end: the snapshot's segments are what is there after the last event, and each event is
undone.  It owns that walk, and knows nothing of allocators.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from qmem.allocator.rounding import SMALL_SEGMENT
from qmem.snapshot.ranges import Ranges
from qmem.snapshot.records import DEFAULT_POOL, Block, Entry, PoolId, Segment, Snapshot

GROWS = ("segment_alloc", "segment_map")
RELEASES = ("segment_free", "segment_unmap")
MOVES = GROWS + RELEASES


class Held(NamedTuple):
    """An allocation that is held.

    Attributes:
        n_bytes: what was requested.
        event: where it was allocated; absent where that was before the history.
        frames: the stack of its request, unread; absent where none was kept.
        label: ``user_metadata`` of its request, or what it was annotated with later.
        block_bytes: the block that it has, where the segments at the end say it.
    """

    n_bytes: int
    stream: int = 0
    event: int | None = None
    frames: Any = None
    label: str = ""
    block_bytes: int | None = None


class Place(NamedTuple):
    """A segment of ``cudaMalloc``, or a run of mapped pages of an expandable segment."""

    address: int
    n_bytes: int
    stream: int
    small: bool
    expandable: bool


class State:
    """What is on the device at one moment.

    Attributes:
        held: allocations by address.
        segments: ordinary segments by address.
        mapped: the pages of expandable segments that are backed by memory.
    """

    def __init__(self, held: dict[int, Held], segments: dict[int, Place], mapped: Ranges) -> None:
        self.held, self.segments, self.mapped = held, segments, mapped

    def copy(self) -> "State":
        """A state that goes its own way."""
        return State(dict(self.held), dict(self.segments), self.mapped.copy())

    @property
    def reserved_bytes(self) -> int:
        """Bytes that the driver has handed out."""
        return sum(place.n_bytes for place in self.segments.values()) + self.mapped.n_bytes

    def apply(self, number: int, entry: Entry) -> None:
        """Bring it behind an event."""
        action, address = entry.action, entry.addr
        if action == "alloc":
            self.held[address] = Held(entry.size, entry.stream, number, entry.frames, entry.user_metadata)
        elif action == "free_completed":
            self.held.pop(address, None)
        elif action == "annotate" and address in self.held:
            self.held[address] = self.held[address]._replace(label=entry.user_metadata)
        elif action == "segment_alloc":
            self.segments[address] = _ordinary(entry)
        elif action == "segment_free":
            self.segments.pop(address, None)
        elif action == "segment_map":
            self.mapped.add(address, entry.size)
        elif action == "segment_unmap":
            self.mapped.remove(address, entry.size)

    def undo(self, entry: Entry) -> bool:
        """Bring it before an event; whether the event could have led here."""
        action, address = entry.action, entry.addr
        if action == "alloc":
            return self.held.pop(address, None) is not None
        if action == "free_completed":
            known = address in self.held
            self.held.setdefault(address, Held(entry.size, entry.stream))
            return not known
        if action == "segment_alloc":
            return self.segments.pop(address, None) is not None
        if action == "segment_free":
            known = address in self.segments
            self.segments[address] = _ordinary(entry)
            return not known
        if action == "segment_map":
            return self.mapped.remove(address, entry.size)
        return action != "segment_unmap" or self.mapped.add(address, entry.size)


def _ordinary(entry: Entry) -> Place:
    return Place(entry.addr, entry.size, entry.stream, entry.size == SMALL_SEGMENT, expandable=False)


class PrivatePool(NamedTuple):
    """A pool of its own (CUDA graphs, ``MemPool``), in bytes at the end."""

    pool_id: PoolId
    n_segments: int
    allocated_bytes: int
    reserved_bytes: int


class History:
    """One device.

    Attributes:
        entries: the events of the default pool that change it, and out-of-memory.
        begin, end: what was there before the first, and after the last event.
        failures: the events that are requests which failed.
        n_contradictions: events that could not have led to the end, as where actions were not recorded.
        final: the default pool's segments at the end.
        private: the other pools, whose events are left out.
    """

    def __init__(self, snapshot: Snapshot, device: int) -> None:
        segments = [segment for segment in snapshot.segments if segment.device == device]
        self.final = [segment for segment in segments if segment.segment_pool_id == DEFAULT_POOL]
        apart = [segment for segment in segments if segment.segment_pool_id != DEFAULT_POOL]
        self.private = _private_pools(apart)
        trace = snapshot.device_traces[device] if device < len(snapshot.device_traces) else []
        self.n_recorded = len(trace)
        self.entries = _of_default_pool(trace, apart)
        self.failures = [number for number, entry in enumerate(self.entries) if entry.action == "oom"]
        self.end = _end(self.final)
        self.begin = self.end.copy()
        self.n_contradictions = sum(not self.begin.undo(entry) for entry in reversed(self.entries))

    @property
    def can_be_replayed(self) -> bool:
        """Whether there are events, and they lead to the end."""
        return bool(self.entries) and not self.n_contradictions

    @property
    def is_whole(self) -> bool:
        """Whether it begins before anything was reserved."""
        return not self.begin.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that was reserved, by the segments that came and went."""
        now = most = self.begin.reserved_bytes
        for entry in self.entries:
            if entry.action in GROWS:
                now += entry.size
                most = max(most, now)
            elif entry.action in RELEASES:
                now -= entry.size
        return most

    def states(self, events: set[int]) -> Iterator[tuple[int, State]]:
        """The states behind these events, in order; ``-1`` is the beginning."""
        state = self.begin.copy()
        if -1 in events:
            yield -1, state
        for number, entry in enumerate(self.entries):
            state.apply(number, entry)
            if number in events:
                yield number, state


def _private_pools(segments: list[Segment]) -> tuple[PrivatePool, ...]:
    pools = sorted({segment.segment_pool_id for segment in segments})
    return tuple(_private_pool(pool, [one for one in segments if one.segment_pool_id == pool]) for pool in pools)


def _private_pool(pool: PoolId, segments: list[Segment]) -> PrivatePool:
    allocated, reserved = (sum(sizes) for sizes in zip(*((s.active_size, s.total_size) for s in segments), strict=True))
    return PrivatePool(pool, len(segments), allocated, reserved)


_KEPT = ("alloc", "free_completed", "oom", "annotate", *MOVES)


def _of_default_pool(trace: list[Entry], apart: list[Segment]) -> list[Entry]:
    """The events that count.

    Before torch 2.12 an event does not name its pool.  It is then known by the private segments at the end, each from
    its birth on: before that its addresses may have been another's.
    """
    private = Ranges()
    for segment in apart:
        private.add(segment.address, segment.total_size)
    kept = []
    for entry in reversed(trace):
        if entry.pool_id is None and private.holds(entry.addr):
            if entry.action in GROWS:
                private.remove(entry.addr, entry.size)
        elif entry.action in _KEPT and entry.pool_id in (None, DEFAULT_POOL):
            kept.append(entry)
    return kept[::-1]


def _end(segments: list[Segment]) -> State:
    state = State({}, {}, Ranges())
    for segment in segments:
        if segment.is_expandable:
            state.mapped.add(segment.address, segment.total_size)
        else:
            small = segment.segment_type == "small"
            state.segments[segment.address] = Place(
                segment.address, segment.total_size, segment.stream, small, expandable=False
            )
        state.held.update({block.address: _held(block, segment) for block in segment.blocks if block.is_held})
    return state


def _held(block: Block, segment: Segment) -> Held:
    return Held(block.requested_size, segment.stream, None, block.frames or None, block_bytes=block.size)
