"""From what a worker told to a ledger: items with a birth and a death, readings, the peak, and what is left over.

Named tensors are counted at each closing of the clean steps.  The traced step, which comes after them, tells the rest:
at a closing of a clean step where as many blocks of the same sizes have no name, and at a high water that leaves as
many bytes for them.  What the items leave of the counters there is posted as *unexplained* and *rounding*.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from msgspec import structs

from qmem.architecture import AdapterPlan, Architecture, position_warning
from qmem.catalogue import FoundModel
from qmem.catalogue.stacks import StackFacts, facts_in_force
from qmem.ledger import Instrument, Interval, Item, Kind, Ledger, Moment, Parameters, Peak, Reading, State, Waterline
from qmem.profiler import protocol
from qmem.profiler.device import DRIVER_USED
from qmem.profiler.environment import replaced_variables
from qmem.profiler.passport import LIBRARIES
from qmem.profiler.protocol import Closed, Counter, Holding, Place, Request, TracedPhase
from qmem.profiler.supervisor import Told

COUNTER = "torch.cuda.memory_stats"
RESIDENT = "managed resident, by subtraction"
UNNAMED_ARE_FEW = ("load", "prepare", "optimizer step")
"""Phases that leave nothing transient behind: what has no name at their closing is unexplained, traced or not."""

_E = TypeVar("_E", bound=protocol.Event)


class Described(NamedTuple):
    """What was asked, and what follows from it without running anything."""

    request: Request
    found: FoundModel
    architecture: Architecture
    plan: AdapterPlan
    facts: StackFacts


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


def ledger_of(described: Described, told: Told) -> Ledger:
    """The ledger of a run, however it ended; at least one phase was closed."""
    spans = _spans(told)
    residents = list(_residents(spans, told))
    matches = _matches(told, spans, residents)
    books = _Books([*residents, *(item for match in matches for item in _transients(match))])
    books.balance(spans, matches)
    started = _only(told, protocol.Started)
    passport = started.passport if started else {}
    return Ledger(
        instrument=_instrument(described.request),
        job=described.request.job,
        model=described.found.id,
        device=started.device if started else "",
        stack={"title": described.facts.title, **facts_in_force(described.facts)},
        versions={library: passport[library] for library in LIBRARIES if library in passport},
        parameters=_parameters(described, told),
        peak=_peak(spans, matches, described.request),
        paged_bytes=_paged_bytes(spans),
        items=tuple(books.items),
        readings=tuple(_readings(spans, matches)),
        assumptions=(*_assumptions(described, matches), *_noted(told, is_warning=False)),
        warnings=(*_warnings(described, told, spans, matches), *_noted(told, is_warning=True)),
        passport={name: text for name, text in passport.items() if name not in LIBRARIES},
        state=_state(told),
        ended=told.ended,
        counters=_counters(described.request, told, spans),
    )


def _instrument(request: Request) -> Instrument:
    return "profile" if request.phantom is None else "phantom profile"


def _only(told: Told, kind: type[_E]) -> _E | None:
    """The event of a kind, if it was told."""
    return next((event for event in told.events if isinstance(event, kind)), None)


def _spans(told: Told) -> list[Span]:
    """The closed phases; each closing has a tick of its own, after the events of its phase."""
    spans: list[Span] = []
    for index, closed in enumerate(event for event in told.events if isinstance(event, Closed)):
        first = spans[-1].last + 1 if spans else 0
        spans.append(Span(closed, first, max(closed.tick + index, first)))
    return spans


def _fullest(spans: list[Span]) -> Span:
    """The phase with the highest peak in training; before training, if it did not come to that."""
    training = [span for span in spans if span.closed.place.step] or spans
    return max(training, key=lambda span: span.closed.allocated.peak)


class Match(NamedTuple):
    """A phase of a clean step and the traced one that is like it: at its high water, at its closing, or at both.

    ``workspaces`` were born in the clean phase before its high water; the traced step had them from the start.
    """

    span: Span
    phase: TracedPhase
    at_high_water: bool
    at_closing: bool
    workspaces: tuple[Item, ...] = ()

    @property
    def high_water(self) -> Moment:
        """The moment of the high water: after as many events as in the traced phase, and before the closing."""
        return self.span.moment(min(self.span.first + self.phase.high_water.offset, self.span.last - 1))


def _matches(told: Told, spans: list[Span], residents: list[Item]) -> list[Match]:
    """The clean phases that the traced step can speak for."""
    traced = _only(told, protocol.Traced)
    phases = {phase.place[1:]: phase for phase in traced.phases} if traced else {}
    workspaces = _only(told, protocol.Workspaces)
    addresses = frozenset(workspaces.addresses) if workspaces else frozenset()
    peak, found = _fullest(spans).closed.place, []
    for span in spans:
        phase = phases.get(span.closed.place[1:])
        if _is_told(span.closed.place, peak) and phase is not None and span.first < span.last:
            match = Match(span, phase, at_high_water=False, at_closing=_same_sizes(span, phase, addresses))
            found.append(_compared_at_high_water(match, residents))
    return found


def _is_told(place: Place, peak: Place) -> bool:
    """Whether a phase's transient memory is told: later steps and micro-steps are like the second ones."""
    return place.step in (1, 2, peak.step) and place.step > 0 and place.micro_step in (1, 2, peak.micro_step)


def _same_sizes(span: Span, phase: TracedPhase, workspaces: frozenset[int]) -> bool:
    """Whether as many blocks of each size have no name when the phase closes."""
    sizes = Tally(block.n_bytes for block in span.closed.unnamed if block.address not in workspaces)
    traced: Tally[int] = Tally()
    for holding in phase.closing.holdings:
        traced[holding.n_bytes // holding.n_tensors] += holding.n_tensors
    return sizes == traced


def _compared_at_high_water(match: Match, residents: list[Item]) -> Match:
    """Whether what is not resident takes as many bytes at the high water, but for workspaces that are born there."""
    at = match.high_water
    held = sum(item.n_bytes for item in residents if _is_requested(item) and item.alive(at))
    traced = sum(holding.n_bytes for holding in match.phase.high_water.holdings)
    excess = match.span.closed.requested.peak - held - traced
    born = [item for item in residents if item.kind is Kind.WORKSPACE and item.born == match.span.closing]
    if excess and excess == sum(item.n_bytes for item in born):
        return match._replace(at_high_water=True, workspaces=tuple(born))
    return match._replace(at_high_water=excess == 0)


def _is_requested(item: Item) -> bool:
    return item.space == "gpu" and item.kind is not Kind.ROUNDING


def _residents(spans: list[Span], told: Told) -> Iterator[Item]:
    """Named tensors, from the closing at which they are first seen to the phase that ends without them."""
    workspaces = _workspaces(spans, told)
    alive: dict[Holding, Span] = {}
    for span in spans:
        seen = {*span.closed.holdings, *workspaces.get(span.last, ())}
        for holding in [holding for holding in alive if holding not in seen]:
            yield from _items(holding, alive.pop(holding).closing, span.moment(span.first))
        for holding in (*span.closed.holdings, *workspaces.get(span.last, ())):
            alive.setdefault(holding, span)
    for holding, born in alive.items():
        yield from _items(holding, born.closing, None)


def _items(holding: Holding, born: Moment, dies: Moment | None) -> Iterator[Item]:
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
    event = _only(told, protocol.Workspaces)
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


def _transients(match: Match) -> Iterator[Item]:
    """What was alive at the high water and at the closing and has no name; each stands for one moment."""
    looks = (
        (match.at_high_water, match.high_water, match.phase.high_water),
        (match.at_closing, match.span.closing, match.phase.closing),
    )
    for holds, moment, seen in looks:
        for holding in seen.holdings if holds else ():
            yield from _items(holding, moment, _next_tick(moment))
    for item in match.workspaces:
        yield structs.replace(item, born=match.high_water, dies=_next_tick(match.high_water))


class _Books:
    """The items, and what they leave of the counters."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = list(items)

    def balance(self, spans: list[Span], matches: list[Match]) -> None:
        """Post what is left over at every moment at which everything should be known."""
        closed_like = {match.span.last for match in matches if match.at_closing}
        for span in spans:
            closed = span.closed
            if span.last in closed_like or closed.place.phase in UNNAMED_ARE_FEW or closed.unfinished:
                self._post(span.closing, closed.requested.current, closed.allocated.current)
        for match in matches:
            if match.at_high_water:
                closed = match.span.closed
                self._post(match.high_water, closed.requested.peak, closed.allocated.peak)

    def _post(self, moment: Moment, requested: int, allocated: int) -> None:
        alive = [item for item in self.items if item.space == "gpu" and item.alive(moment)]
        held = sum(item.n_bytes for item in alive if item.kind is not Kind.ROUNDING)
        rounding = sum(item.n_bytes for item in alive if item.kind is Kind.ROUNDING)
        left = (
            (Kind.UNEXPLAINED, requested - held, "tensors that nothing named"),
            (Kind.ROUNDING, allocated - requested - rounding, "unsplit tails of blocks"),
        )
        after = _next_tick(moment)
        for kind, n_bytes, owner in left:
            if n_bytes > 0:
                self.items.append(Item(n_bytes=n_bytes, kind=kind, owner=owner, born=moment, dies=after))


def _next_tick(moment: Moment) -> Moment:
    """The next tick of the same phase."""
    return Moment(moment.step, moment.micro_step, moment.phase, moment.tick + 1)


def _readings(spans: list[Span], matches: list[Match]) -> Iterator[Reading]:
    """What the counters showed; requested and allocated peak stand at the high water where that is known."""
    high = _high_waters(matches)
    for span in spans:
        closed = span.closed
        at_peak = high.get(span.last, span.closing)
        yield from _pair(span.closing, at_peak, "requested", closed.requested, COUNTER)
        yield from _pair(span.closing, at_peak, "allocated", closed.allocated, COUNTER)
        if closed.active != closed.allocated:
            # Blocks that a stream still uses after their tensor died (record_stream).
            yield from _pair(span.closing, at_peak, "allocated", closed.active, f"{COUNTER} active")
        yield from _pair(span.closing, span.closing, "reserved", closed.reserved, COUNTER)
        for counter, n_bytes in sorted(closed.device.items(), key=lambda pair: pair[0] == DRIVER_USED):
            yield Reading(moment=span.closing, waterline="device", measure="current", n_bytes=n_bytes, counter=counter)


def _pair(closing: Moment, at_peak: Moment, waterline: Waterline, counter: Counter, name: str) -> Iterator[Reading]:
    yield Reading(moment=at_peak, waterline=waterline, measure="peak", n_bytes=counter.peak, counter=name)
    yield Reading(moment=closing, waterline=waterline, measure="current", n_bytes=counter.current, counter=name)


def _high_waters(matches: list[Match]) -> dict[int, Moment]:
    """The moments of high water that are known, by the tick of the closing."""
    return {match.span.last: match.high_water for match in matches if match.at_high_water}


def _peak(spans: list[Span], matches: list[Match], request: Request) -> Peak:
    fullest = _fullest(spans)
    closed = fullest.closed
    return Peak(
        moment=_high_waters(matches).get(fullest.last, fullest.closing),
        requested_bytes=closed.requested.peak,
        allocated_bytes=closed.allocated.peak,
        reserved_bytes=max(span.closed.reserved.peak for span in spans),
        device_bytes=None if request.phantom else _device_bytes(spans),
    )


def _device_bytes(spans: list[Span]) -> Interval | None:
    """The most that the driver counted as used at a closing; a simulated one knows no true context."""
    used = [span.closed.device[DRIVER_USED] for span in spans if DRIVER_USED in span.closed.device]
    return Interval(max(used), max(used)) if used else None


def _parameters(described: Described, told: Told) -> Parameters:
    counted = _only(told, protocol.Described)
    if counted is None:
        return Parameters(described.plan.total, described.plan.trainable)
    return Parameters(counted.total, counted.trainable)


def _paged_bytes(spans: list[Span]) -> int:
    """Managed bytes at the closing that had the most of them."""
    return max(sum(holding.n_bytes for holding in span.closed.holdings if holding.space == "managed") for span in spans)


def _state(told: Told) -> State:
    guarded = _only(told, protocol.Guarded)
    return guarded.state if guarded else "clean"


def _counters(request: Request, told: Told, spans: list[Span]) -> dict[str, int]:
    finished, started = _only(told, protocol.Finished), _only(told, protocol.Started)
    # Where managed pages lie is not simulated.
    context = started.passport.get("context bytes") if started and not request.phantom else None
    resident = {RESIDENT: _resident_managed(spans[-1], int(context))} if context and _paged_bytes(spans) else {}
    return {**spans[-1].closed.totals, **(finished.host if finished else {}), **resident}


def _resident_managed(last: Span, context_bytes: int) -> int:
    """Managed bytes on the GPU by subtraction: used by anyone, less torch's segments and the context at the start.

    It is off by what other programs and lazily loaded modules took since, and by pages of 2 MiB; a driver that can
    tell (``cuMemGetLocationInfo``) is not asked yet.
    """
    used = last.closed.device.get(DRIVER_USED, 0)
    return max(used - last.closed.reserved.current - context_bytes, 0)


def _noted(told: Told, *, is_warning: bool) -> list[str]:
    notes = [event for event in told.events if isinstance(event, protocol.Noted)]
    return [note.sentence for note in notes if note.is_warning is is_warning]


def _assumptions(described: Described, matches: list[Match]) -> Iterator[str]:
    request = described.request
    if request.phantom:
        yield "simulated: sizes of context and modules, resident pages and times are not those of a card"
    if request.weights is None:
        yield "weights are made up: no size depends on their values"
    yield "batches are full sequences of random tokens, every position is a label, and no attention mask is passed"
    if matches:
        yield "owners of transient memory are those of one more step, traced after the clean ones and found like them"


def _warnings(described: Described, told: Told, spans: list[Span], matches: list[Match]) -> Iterator[str]:
    if told.ended != "complete":
        yield f"the run ended early in the {_where(told, spans)}, {told.ended}: {told.message}"
    guarded = _only(told, protocol.Guarded)
    if guarded is not None and guarded.state != "clean":
        yield from guarded.sentences
    if spans[-1].closed.totals["alloc_retries"]:
        yield "the card was full: torch gave segments back and tried again, so reserved says nothing about the need"
    yield from _unlike(_fullest(spans), matches)
    replaced = replaced_variables()
    if replaced:
        yield f"not handed to the run, which the job decides: {', '.join(replaced)}"
    beyond = position_warning(described.architecture, described.request.job.seq)
    yield from ([beyond] if beyond else [])
    yield from described.found.notes


def _where(told: Told, spans: list[Span]) -> str:
    entered = [event for event in told.events if isinstance(event, protocol.Entered)]
    place = entered[-1].place if entered else spans[-1].closed.place
    return str(Moment(*place, 0))


def _unlike(fullest: Span, matches: list[Match]) -> Iterator[str]:
    """A sentence where the traced step cannot tell what the peak held."""
    match = next((match for match in matches if match.span is fullest), None)
    if match is not None and not match.at_high_water:
        excess = match.phase.high_water.n_bytes - fullest.closed.requested.peak
        yield (
            f"the traced step requested {abs(excess):,} B {'more' if excess > 0 else 'less'} at the peak than the "
            "clean one: what it held there beside named tensors is unexplained"
        )
