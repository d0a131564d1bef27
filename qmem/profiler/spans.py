"""The closed phases of a run, and its named tensors from their birth to their death.

Ticks count torch's allocations and frees; every closing has a tick of its own.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from msgspec import structs

from qmem.ledger import Item, Kind, Moment
from qmem.profiler import protocol
from qmem.profiler.protocol import Closed, Holding
from qmem.profiler.supervisor import Told

_E = TypeVar("_E", bound=protocol.Event)


class Span(NamedTuple):
    """A closed phase: its ticks run from ``first`` to ``last``, which is its closing."""

    closed: Closed
    first: int
    last: int

    def moment(self, tick: int) -> Moment:
        """A moment in this phase."""
        return Moment(*self.closed.place, tick)

    @property
    def closing(self) -> Moment:
        """The moment of its closing."""
        return self.moment(self.last)


def only(told: Told, kind: type[_E]) -> _E | None:
    """The event of a kind, if it was told."""
    return next((event for event in told.events if isinstance(event, kind)), None)


def spans_of(told: Told) -> list[Span]:
    """The closed phases; each closing has a tick of its own, after the events of its phase."""
    spans: list[Span] = []
    for index, closed in enumerate(event for event in told.events if isinstance(event, Closed)):
        first = spans[-1].last + 1 if spans else 0
        spans.append(Span(closed, first, max(closed.tick + index, first)))
    return spans


def fullest(spans: list[Span]) -> Span:
    """The phase with the highest peak in training; before training, if it did not come to that."""
    training = [span for span in spans if span.closed.place.step] or spans
    # Of equals one after the first step: that is the steady state, and like the traced one.
    return max(training, key=lambda span: (span.closed.allocated.peak, span.closed.place.step > 1))


def residents_of(spans: list[Span], told: Told) -> Iterator[Item]:
    """Named tensors, from the closing at which they are first seen to the phase that ends without them."""
    workspaces = _workspaces(spans, told)
    alive: dict[Holding, Span] = {}
    for span in (span for span in spans if span.closed.looked):
        seen = {*span.closed.holdings, *workspaces.get(span.last, ())}
        for holding in [holding for holding in alive if holding not in seen]:
            yield from items_of(holding, alive.pop(holding).closing, span.moment(span.first))
        for holding in (*span.closed.holdings, *workspaces.get(span.last, ())):
            alive.setdefault(holding, span)
    for holding, born in alive.items():
        yield from items_of(holding, born.closing, None)


def items_of(holding: Holding, born: Moment, dies: Moment | None) -> Iterator[Item]:
    """The item of a holding, and the rounding of its blocks."""
    owner, kind, space, n_bytes, count, because, block_bytes, _ = holding
    item = Item(
        n_bytes=n_bytes, kind=kind, owner=owner, born=born, dies=dies, space=space, because=because, count=count
    )
    yield item
    if block_bytes is not None and block_bytes > n_bytes:
        yield structs.replace(item, n_bytes=block_bytes - n_bytes, kind=Kind.ROUNDING, because="")


def _workspaces(spans: list[Span], told: Told) -> dict[int, list[Holding]]:
    """The workspaces of cuBLAS at each closing: blocks that were there ever since, told by address at the end.

    Each handle has one: the main thread's is made in the forward, that of autograd's thread in the backward.
    """
    event = only(told, protocol.Workspaces)
    found: dict[int, list[Holding]] = {}
    for address in event.addresses if event else ():
        held = [(span, block) for span in spans for block in span.closed.unnamed if block.address == address]
        last = [block for span, block in held if span is spans[-1]]
        since = [span for span, block in held if last and block == last[0]]
        for span in _unbroken(spans, since):
            thread = "autograd" if _first_phase(since) == "backward" else "main"
            owner = f"cuBLAS handle of the {thread} thread"
            holding = Holding(owner, Kind.WORKSPACE, "gpu", last[0].n_bytes, 1, "workspace", last[0].block_bytes)
            found.setdefault(span.last, []).append(holding)
    return found


def _unbroken(spans: list[Span], since: list[Span]) -> list[Span]:
    """The end of ``spans`` that is all in ``since``."""
    kept: list[Span] = []
    for span in reversed(spans):
        if span not in since:
            break
        kept.append(span)
    return kept


def _first_phase(spans: list[Span]) -> str:
    return spans[0].closed.place.phase if spans else ""
