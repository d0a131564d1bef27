"""A machine that follows a recorded process: segments that were there before its first request, releases as recorded.

It owns how described segments become blocks and go again, and knows nothing of where the description comes from.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qmem.allocator import expandable, segments
from qmem.allocator.allocator import CachingAllocator
from qmem.allocator.blocks import ADDRESS_BITS, CACHED, IN_USE, UNMAPPED, Block, Pool


class Piece(NamedTuple):
    """A run of bytes in a segment: held under ``handle``, cached (no handle), or not backed by memory.

    Bytes without memory exist in expandable segments only.
    """

    n_bytes: int
    handle: int | None = None
    requested_bytes: int = 0
    mapped: bool = True


def adopt(allocator: CachingAllocator, pieces: Sequence[Piece], *, stream: int, small: bool) -> int:
    """Enter a segment of the small or the large pool, given by its pieces in the order of their addresses.

    With expandable segments it is a range of addresses, and what is behind the last piece is not backed by memory.
    Segments are older than those adopted after them.  The answer is the address at which it begins in the machine.
    """
    pool, device = allocator.pool(stream, small=small), allocator.device
    described = sum(piece.n_bytes for piece in pieces)
    whole = max(described, expandable.range_bytes(device, pool)) if pool.expandable else described
    if whole > described:
        pieces = [*pieces, Piece(whole - described, mapped=False)]
    start = address = device.new_addresses(whole)
    last: Block | None = None
    for piece in pieces:
        block = _block(pool, piece, address, start if pool.expandable else None)
        block.previous = last
        if last is not None:
            last.next = block
        _enter(allocator, pool, block, piece)
        last, address = block, address + piece.n_bytes
    return start


def give_back(allocator: CachingAllocator, address: int, n_bytes: int, *, stream: int, small: bool) -> None:
    """Release one ordinary segment, if it is there and nothing of it is held."""
    pool = allocator.pool(stream, small=small)
    block = pool.of_key.get(n_bytes << ADDRESS_BITS | address)
    if block is not None and not block.is_split:
        segments.release(allocator.device, block)


def _block(pool: Pool, piece: Piece, address: int, range_start: int | None) -> Block:
    state = UNMAPPED if not piece.mapped else CACHED if piece.handle is None else IN_USE
    return Block(address, piece.n_bytes, pool, state, range_start=range_start, requested=piece.requested_bytes)


def _enter(allocator: CachingAllocator, pool: Pool, block: Block, piece: Piece) -> None:
    if block.state == UNMAPPED:
        pool.unmapped.append(block)  # ranges are made in the order of their addresses
        return
    allocator.device.reserve("segment_map" if pool.expandable else "segment_alloc", block.address, block.size)
    if piece.handle is None:
        pool.add(block)
    else:
        allocator.hold(piece.handle, block)
