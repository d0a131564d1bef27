"""Memory that is reserved and not allocated: in which segments it lies, in what pieces, and what keeps them.

It owns the geometry of a moment, and knows nothing of how the moment came about.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

from qmem.snapshot.answer import Fragmentation, SegmentUse, When
from qmem.snapshot.history import Place, State


class Blocks(NamedTuple):
    """What is held, in order of addresses, and the block of each."""

    addresses: list[int]
    sizes: list[int]
    names: Callable[[int], str]


def fragmentation(when: When, state: State, block_bytes: dict[int, int], names: Callable[[int], str]) -> Fragmentation:
    """All segments that are partly or wholly free, the one with the most free bytes first.

    ``block_bytes`` are by address; ``names`` says who holds an address.
    """
    addresses = sorted(block_bytes)
    blocks = Blocks(addresses, [block_bytes[address] for address in addresses], names)
    uses = [use for place in _places(state) if (use := _use(place, blocks)).free_bytes]
    return Fragmentation(
        when=when,
        free_bytes=sum(use.free_bytes for use in uses),
        whole_bytes=sum(use.free_bytes for use in uses if not use.n_held),
        largest_free_bytes=max((use.largest_free_bytes for use in uses), default=0),
        segments=tuple(sorted(uses, key=lambda use: (-use.free_bytes, use.address))),
    )


def _places(state: State) -> Iterator[Place]:
    yield from state.segments.values()
    for start, end in state.mapped:
        yield Place(start, end - start, _stream_of(state, start, end), small=False, expandable=True)


def _stream_of(state: State, start: int, end: int) -> int:
    return next((held.stream for address, held in state.held.items() if start <= address < end), 0)


def _use(place: Place, blocks: Blocks) -> SegmentUse:
    end = place.address + place.n_bytes
    first, last = bisect_left(blocks.addresses, place.address), bisect_left(blocks.addresses, end)
    inside = range(first, last)
    allocated = sum(blocks.sizes[at] for at in inside)
    largest = max(inside, key=blocks.sizes.__getitem__, default=None)
    return SegmentUse(
        address=place.address,
        n_bytes=place.n_bytes,
        stream=place.stream,
        small=place.small,
        expandable=place.expandable,
        n_held=len(inside),
        allocated_bytes=allocated,
        free_bytes=place.n_bytes - allocated,
        largest_free_bytes=max(_holes(place.address, end, inside, blocks), default=0),
        kept_by="" if largest is None else blocks.names(blocks.addresses[largest]),
    )


def _holes(at: int, end: int, inside: range, blocks: Blocks) -> Iterator[int]:
    for index in inside:
        yield blocks.addresses[index] - at
        at = blocks.addresses[index] + blocks.sizes[index]
    yield end - at
