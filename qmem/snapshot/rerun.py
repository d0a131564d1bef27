"""A history run through the allocator again, with its own settings or with others.

It owns what of a history is given to the machine: requests, frees, and the program's own ``empty_cache``; segments are
the machine's business.  It knows nothing of why a tensor was made.
"""

from collections.abc import Iterator, Sequence

import msgspec

from qmem.allocator import AllocatorSettings, CachingAllocator, OutOfMemory
from qmem.allocator.adoption import give_back
from qmem.allocator.rounding import SMALL_SEGMENT
from qmem.snapshot.beginning import adopt_beginning, handle_before, pack_beginning
from qmem.snapshot.history import GROWS, MOVES, RELEASES, History
from qmem.snapshot.records import Entry


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that the process can have, and the whole device; absent where they are not known."""

    capacity: int | None = None
    device_total: int | None = None


class Rerun(msgspec.Struct, kw_only=True):
    """What the machine did.  Bytes; an event is a number of the history, ``-1`` its beginning.

    Attributes:
        peak_allocated_event: after which event the most was allocated.
        block_bytes: by event, or handle from before the history, the block that was handed out.
        largest_difference: of reserved memory, machine less recorded, where it differs most after any request.
        first_difference: the event where it differs first; absent where it never does.
        n_retries: how often all cached memory was released to make room.
        served: by event that was out of memory, whether the machine had room for its request.
        failed: the event at which it had no room for a request that was served, where the run ends.
    """

    allocated_bytes: int = 0
    reserved_bytes: int = 0
    peak_allocated_bytes: int = 0
    peak_allocated_event: int = -1
    peak_reserved_bytes: int = 0
    block_bytes: dict[int, int] = {}
    largest_difference: int = 0
    first_difference: int | None = None
    n_retries: int = 0
    served: dict[int, bool] = {}
    failed: int | None = None


def run_as_recorded(history: History, settings: AllocatorSettings) -> Rerun:
    """With the settings of the recorded process: the same segments should come out, and it is looked whether they do.

    Segments are released where that was recorded, whoever did it; nothing runs out of memory.
    """
    allocator = CachingAllocator(settings)
    mirror = _Mirror(allocator, history)
    run = _run(allocator, history, mirror)
    mirror.compare(len(history.entries) - 1)
    run.largest_difference, run.first_difference = mirror.largest_difference, mirror.first_difference
    return run


def run_with(history: History, settings: AllocatorSettings, limits: Limits) -> Rerun:
    """With other settings, from a packed beginning; only the program's own releases are played.

    Where requests failed it is run twice: what a request that is served leaves behind is in no other figure.
    """
    run = _run_packed(history, settings, limits, tries=False)
    if history.failures and run.failed is None:
        run.served = _run_packed(history, settings, limits, tries=True).served
    return run


def _run_packed(history: History, settings: AllocatorSettings, limits: Limits, *, tries: bool) -> Rerun:
    allocator = CachingAllocator(settings, limits.capacity, device_total=limits.device_total)
    try:
        pack_beginning(allocator, history)
    except OutOfMemory:
        return Rerun(failed=-1)
    return _run(allocator, history, _Program(allocator, history.entries), tries=tries)


class _Program:
    """Plays the program's own ``empty_cache``; what torch released to make room is the machine's business."""

    def __init__(self, allocator: CachingAllocator, entries: Sequence[Entry]) -> None:
        self.allocator = allocator
        self.starts = {start for start, end in release_runs(entries) if not makes_room(entries, end)}

    def served(self, number: int) -> None:
        """A request was served."""

    def moved(self, number: int, entry: Entry) -> None:  # noqa: ARG002 - the other player needs it
        """A segment came or went in the recorded process."""
        if number in self.starts:
            self.allocator.empty_cache()


class _Mirror:
    """Releases the segments that were released, and looks where the machine reserves something else.

    Attributes:
        starts: where ordinary segments begin in the machine, by recorded address.
        asked: recorded addresses of segments that came for the request at hand.
    """

    def __init__(self, allocator: CachingAllocator, history: History) -> None:
        self.allocator = allocator
        self.starts = adopt_beginning(allocator, history)
        self.n_seen = len(allocator.history)
        self.reserved_bytes = history.begin.reserved_bytes
        self.asked: list[int] = []
        self.unmaps = {start for start, _ in release_runs(history.entries)}
        self.largest_difference = 0
        self.first_difference: int | None = None

    def served(self, number: int) -> None:
        """A request was served, by the machine too: its new segments are those that were recorded."""
        made = self.allocator.history[self.n_seen :]
        self.starts.update(zip(self.asked, (call.address for call in made), strict=False))
        self.n_seen, self.asked = self.n_seen + len(made), []
        self.compare(number)

    def moved(self, number: int, entry: Entry) -> None:
        """A segment came or went in the recorded process."""
        self.reserved_bytes += entry.size if entry.action in GROWS else -entry.size
        if entry.action == "segment_alloc":
            self.asked.append(entry.addr)
        elif entry.action == "segment_free":
            small = entry.size == SMALL_SEGMENT
            start = self.starts.pop(entry.addr, entry.addr)
            give_back(self.allocator, start, entry.size, stream=entry.stream, small=small)
        elif entry.action == "segment_unmap" and number in self.unmaps:
            self.allocator.empty_cache()
        if entry.action in RELEASES:
            self.n_seen = len(self.allocator.history)

    def compare(self, number: int) -> None:
        """Look whether the machine has reserved what was recorded."""
        difference = self.allocator.reserved_bytes - self.reserved_bytes
        if difference and self.first_difference is None:
            self.first_difference = number
        if abs(difference) > abs(self.largest_difference):
            self.largest_difference = difference


def _run(allocator: CachingAllocator, history: History, player: "_Program | _Mirror", *, tries: bool = False) -> Rerun:
    """Run the events; ``tries`` makes the requests that failed, and frees at once what they get."""
    handles = {address: handle_before(address) for address in history.begin.held}
    blocks = {handle: allocator.block_bytes(handle) for handle in handles.values()}
    run = Rerun(block_bytes=blocks, served={}, peak_allocated_bytes=allocator.allocated_bytes)
    for number, entry in enumerate(history.entries):
        action = entry.action
        if action == "alloc":
            try:
                blocks[number] = allocator.malloc(number, entry.size, entry.stream)
            except OutOfMemory:
                run.failed = number
                break
            handles[entry.addr] = number
            _note_peak(run, allocator, number)
            player.served(number)
        elif action == "free_completed":
            allocator.free(handles.pop(entry.addr))
        elif action in MOVES:
            player.moved(number, entry)
        elif action == "oom" and tries:
            run.served[number] = _has_room(allocator, number, entry)
    return _closed(run, allocator)


def _note_peak(run: Rerun, allocator: CachingAllocator, number: int) -> None:
    if allocator.allocated_bytes > run.peak_allocated_bytes:
        run.peak_allocated_bytes, run.peak_allocated_event = allocator.allocated_bytes, number


def _has_room(allocator: CachingAllocator, number: int, entry: Entry) -> bool:
    try:
        allocator.malloc(number, entry.size, entry.stream)
    except OutOfMemory:
        return False
    allocator.free(number)
    return True


def _closed(run: Rerun, allocator: CachingAllocator) -> Rerun:
    run.allocated_bytes, run.reserved_bytes = allocator.allocated_bytes, allocator.reserved_bytes
    run.peak_reserved_bytes, run.n_retries = allocator.peak_reserved_bytes, allocator.n_retries
    return run


def release_runs(entries: Sequence[Entry]) -> Iterator[tuple[int, int]]:
    """Runs of releases: the first event of each, and the event behind it."""
    begin = None
    for number, entry in enumerate(entries):
        if entry.action in RELEASES:
            begin = number if begin is None else begin
        elif begin is not None:
            yield begin, number
            begin = None
    if begin is not None:
        yield begin, len(entries)


def n_retries(entries: Sequence[Entry]) -> int:
    """How often torch released cached memory to make room for a request, as far as it can be told."""
    return sum(makes_room(entries, end) for _, end in release_runs(entries))


def makes_room(entries: Sequence[Entry], end: int) -> bool:
    """Whether torch released cached memory for the request at ``end``, and not the program by ``empty_cache``.

    Both then carry the stack of that request (``release_cached_blocks`` is given the context of ``malloc``), while
    ``empty_cache`` has its own, or that of the segment's birth.  Without stacks only an out-of-memory tells.
    """
    if end == len(entries):
        return False
    released, following = entries[end - 1], entries[end]
    if following.action == "oom":
        return True
    return following.action in GROWS and bool(released.frames) and released.frames == following.frames
