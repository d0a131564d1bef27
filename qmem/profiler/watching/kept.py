"""Blocks without a name that outlive the step that made them: what a program keeps from step to step.

A step later they are there before it begins, and so they count as residents.  The traced step says where its own was
made; it is taken that those of the same size come from there too.  Where no line is known they stay *unexplained*.
"""

from collections.abc import Iterator
from typing import NamedTuple

from qmem.ledger import Item, Kind, Moment
from qmem.profiler import protocol
from qmem.profiler.names import Named
from qmem.profiler.protocol import Block, Holding
from qmem.profiler.replay import Recording
from qmem.profiler.spans import Span, items_of, only
from qmem.profiler.supervisor import Told

KEPT = "kept from step to step"
SINCE_BEFORE = "there before the first step"


class KeptBlock(NamedTuple):
    """A block, the end of the step that made it, since when it counts as a resident, and when it went."""

    block: Block
    since: Span
    dies: Moment | None


def name_kept(recording: Recording) -> None:
    """Give a name to what is there without one before the traced step and after it: it is counted elsewhere."""
    freed = {entry["addr"] for entry in recording.events[recording.n_earlier :] if entry["action"] != "alloc"}
    for address in recording.blocks.keys() - recording.before.named.keys() - freed:
        named = Named(KEPT, Kind.UNEXPLAINED, 0, address, managed=False, because="")
        for mark in (recording.before, *recording.marks):
            mark.named.setdefault(address, named)


def kept_blocks(spans: list[Span], told: Told) -> tuple[KeptBlock, ...]:
    """The blocks that have no name at the end of a step, and are there at every closing after it."""
    looked = [span for span in spans if span.closed.looked]
    last = _last_in_step(looked, told)
    ends = {span.closed.place.step: span for span in looked if not span.closed.unfinished}
    found: dict[Block, Span] = {}
    survivors = set(last.closed.unnamed) - _workspaces(spans, told)
    for span in reversed(looked[: looked.index(last)]):
        survivors &= set(span.closed.unnamed)
        if ends.get(span.closed.place.step) is span:
            found.update(dict.fromkeys(survivors, span))
    for block in _batches(found, list(ends.values()), last):
        del found[block]
    there = set(spans[-1].closed.unnamed)
    gone = spans[-1].moment(spans[-1].first)
    return tuple(KeptBlock(block, since, None if block in there else gone) for block, since in found.items())


def _workspaces(spans: list[Span], told: Told) -> set[Block]:
    event = only(told, protocol.Workspaces)
    addresses = event.addresses if event else ()
    return {block for block in spans[-1].closed.unnamed if block.address in addresses}


def _last_in_step(looked: list[Span], told: Told) -> Span:
    """The last closing inside a step: where the last step closes, a program that ended has let everything go."""
    *_, before, last = [looked[0], *looked]
    traced = only(told, protocol.Traced)
    went_on = traced is not None and bool(traced.phases) and traced.phases[-1].place.step > last.closed.place.step
    is_end = last.closed.place.phase == "optimizer step" and before.closed.place.step == last.closed.place.step
    return before if is_end and not went_on else last


def _batches(found: dict[Block, Span], ends: list[Span], last: Span) -> list[Block]:
    """Blocks of the last step only, of a size that earlier steps let go: the batch that was made before its forward."""
    earlier = [end for end in ends if end.closed.place.step < last.closed.place.step]
    vanished = {block.n_bytes for end in earlier for block in end.closed.unnamed if block not in found}
    return [block for block, since in found.items() if since is earlier[-1] and block.n_bytes in vanished]


def items_of_kept(kept: tuple[KeptBlock, ...], told: Told) -> Iterator[Item]:
    """The kept blocks as residents; those of a step and a size are one item."""
    groups: dict[tuple[Moment, Moment | None, int, int], int] = {}
    for block, since, dies in kept:
        key = (since.closing, dies, block.n_bytes, block.block_bytes)
        groups[key] = groups.get(key, 0) + 1
    for (moment, dies, n_bytes, block_bytes), count in groups.items():
        owner, kind = (SINCE_BEFORE, Kind.UNEXPLAINED) if moment.step == 0 else _told_of(n_bytes, told)
        holding = Holding(owner, kind, "gpu", n_bytes * count, count, "", block_bytes * count)
        yield from items_of(holding, moment, dies)


def _told_of(n_bytes: int, told: Told) -> tuple[str, Kind]:
    place = _made_at(n_bytes, told)
    return (f"{KEPT}: {place}", Kind.KEPT) if place else (KEPT, Kind.UNEXPLAINED)


def _made_at(n_bytes: int, told: Told) -> str:
    """Where the traced step made blocks of this size that are there at its end, if that is one place."""
    traced = only(told, protocol.Traced)
    held = traced.phases[-1].closing.holdings if traced and traced.phases else ()
    places = {one.because.partition(", since")[0] for one in held if one.n_bytes == n_bytes * one.n_tensors}
    return places.pop() if len(places) == 1 else ""
