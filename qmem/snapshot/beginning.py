"""The machine at the beginning of a history: the segments, blocks and holes that were there already.

It owns what must be inferred about them: the size of a block that is freed later, the pool of pages that are mapped.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from qmem.allocator import AllocatorSettings, CachingAllocator
from qmem.allocator.adoption import Piece, adopt
from qmem.allocator.rounding import LARGE_SEGMENT, SMALL_SIZE, round_to_division
from qmem.snapshot.history import RELEASES, Held, History, Place, State
from qmem.snapshot.records import Entry


def handle_before(address: int) -> int:
    """The handle of an allocation that is older than the history; those of the history are numbers of events."""
    return ~address


def adopt_beginning(allocator: CachingAllocator, history: History) -> dict[int, int]:
    """Enter all that was there, where it was; the machine works as the recorded process did.

    The answer is where ordinary segments begin in the machine, by their recorded address.
    """
    starts = {}
    begin, addresses = history.begin, sorted(history.begin.held)
    for place in sorted(begin.segments.values()):
        pieces = [*_pieces(place, begin, addresses, allocator.settings)]
        starts[place.address] = adopt(allocator, pieces, stream=place.stream, small=place.small)
    ranges: dict[tuple[int, bool], list[Piece]] = {}
    ends: dict[tuple[int, bool], int] = {}
    for start, end in begin.mapped:
        place = _run(history, addresses, start, end)
        kind = (place.stream, place.small)
        pieces = ranges.setdefault(kind, [])
        if pieces:
            pieces.append(Piece(place.address - ends[kind], mapped=False))
        pieces += _pieces(place, begin, addresses, allocator.settings)
        ends[kind] = place.address + place.n_bytes
    for (stream, small), pieces in ranges.items():
        adopt(allocator, pieces, stream=stream, small=small)
    return starts


def pack_beginning(allocator: CachingAllocator, history: History) -> None:
    """Request all that was held, in the order of addresses, from an empty machine: nothing else is known of it."""
    for address, held in sorted(history.begin.held.items()):
        allocator.malloc(handle_before(address), held.n_bytes, held.stream)


def _pieces(place: Place, state: State, addresses: list[int], settings: AllocatorSettings) -> Iterator[Piece]:
    """Blocks and holes of a segment, in order; ``addresses`` are all that are held, sorted."""
    at, end = place.address, place.address + place.n_bytes
    inside = addresses[bisect_left(addresses, at) : bisect_left(addresses, end)]
    for address, following in pairwise([*inside, end]):
        if address > at:
            yield Piece(address - at)
        held = state.held[address]
        size = _block_bytes(held, place, following - address, settings)
        yield Piece(size, handle_before(address), held.n_bytes)
        at = address + size
    if at < end:
        yield Piece(end - at)


def _block_bytes(held: Held, place: Place, room: int, settings: AllocatorSettings) -> int:
    """The block of an allocation with so much room up to the next, or to the end of its segment.

    A free block of an ordinary large segment is always larger than 1 MiB, so that a smaller rest is part of the block.
    """
    if held.block_bytes is not None:
        return min(held.block_bytes, room)
    size = round_to_division(held.n_bytes, settings.roundup_power2_divisions)
    unsplit = not (place.small or place.expandable) and room - size <= SMALL_SIZE
    return room if unsplit else min(size, room)


def _run(history: History, addresses: list[int], start: int, end: int) -> Place:
    """A run of mapped pages, with the stream and pool of what lies in it, or of the next event there."""
    stream, small = 0, False
    at = bisect_left(addresses, start)
    if at < len(addresses) and addresses[at] < end:
        held = history.begin.held[addresses[at]]
        stream, small = held.stream, held.n_bytes <= SMALL_SIZE
    else:
        following = next((entry for entry in history.entries if start <= entry.addr < end), None)
        segment = next(
            (one for one in history.final if start < one.address + one.total_size and one.address < end), None
        )
        if following is not None:
            stream, small = following.stream, _is_small(following)
        elif segment is not None:
            stream, small = segment.stream, segment.segment_type == "small"
    return Place(start, end - start, stream, small, expandable=True)


def _is_small(entry: Entry) -> bool:
    """Whether an event is of the small pool: by its request, or by pages that are none of the large pool's."""
    return entry.size % LARGE_SEGMENT != 0 if entry.action in RELEASES else entry.size <= SMALL_SIZE
