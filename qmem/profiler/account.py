"""From what a worker told to a ledger: items with a birth and a death, readings, the peak, and what is left over.

Named tensors are counted at each closing of the clean steps; the traced step, which comes after them, tells the rest.
What both leave of the counters is posted as *unexplained* and *rounding*.
"""

from collections.abc import Iterable, Iterator

from qmem.catalogue.stacks import facts_in_force
from qmem.ledger import Instrument, Interval, Item, Kind, Ledger, Moment, Parameters, Peak, Reading, State, Waterline
from qmem.profiler import protocol
from qmem.profiler.device import DRIVER_USED
from qmem.profiler.matching import Match, high_waters, matches_of, next_tick, transients_of
from qmem.profiler.protocol import Counter, Request
from qmem.profiler.refusals import libraries_of
from qmem.profiler.sentences import Described, assumptions_of, noted, unallocated, warnings_of
from qmem.profiler.spans import Span, fullest, only, residents_of, spans_of
from qmem.profiler.supervisor import Told

COUNTER = "torch.cuda.memory_stats"
RESIDENT = "managed resident"
SUBTRACTED = f"{RESIDENT}, by subtraction"
UNNAMED_ARE_FEW = ("load", "prepare", "optimizer step")
"""Phases that leave nothing transient behind: what has no name at their closing is unexplained, traced or not."""


def ledger_of(described: Described, told: Told) -> Ledger:
    """The ledger of a run, however it ended; at least one phase was closed."""
    spans = spans_of(told)
    residents = list(residents_of(spans, told))
    matches = matches_of(told, spans, residents)
    books = Books([*residents, *(item for match in matches for item in transients_of(match))])
    books.balance(spans, matches)
    started = only(told, protocol.Started)
    passport = started.passport if started else {}
    libraries = libraries_of(described.request.job)
    counters = counters_of(described.request, told, spans)
    subtracted = error_of_subtraction(counters)
    return Ledger(
        instrument=instrument_of(described.request),
        job=described.request.job,
        model=described.found.id,
        device=started.device if started else "",
        stack={"title": described.facts.title, **facts_in_force(described.facts)},
        versions={library: passport[library] for library in libraries if library in passport},
        parameters=_parameters(described, told),
        peak=peak_of(spans, matches, described.request),
        paged_bytes=paged_bytes_of(spans),
        items=tuple(books.items),
        readings=tuple(readings_of(spans, matches)),
        assumptions=(*assumptions_of(described, told, matches), *subtracted, *noted(told, is_warning=False)),
        warnings=(*warnings_of(described, told, spans, matches), *noted(told, is_warning=True)),
        passport={name: text for name, text in passport.items() if name not in libraries},
        state=state_of(told),
        ended=told.ended,
        counters=counters,
    )


def instrument_of(request: Request) -> Instrument:
    """Which instrument the run was."""
    return "profile" if request.phantom is None else "phantom profile"


class Books:
    """The items, and what they leave of the counters."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = list(items)

    def balance(self, spans: list[Span], matches: list[Match]) -> None:
        """Post what is left over at every moment at which everything should be known."""
        closed_like = {match.span.last for match in matches if match.at_closing}
        for span in (span for span in spans if span.closed.looked):
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
        after = next_tick(moment)
        for kind, n_bytes, owner in left:
            if n_bytes > 0:
                self.items.append(Item(n_bytes=n_bytes, kind=kind, owner=owner, born=moment, dies=after))


def readings_of(spans: list[Span], matches: list[Match]) -> Iterator[Reading]:
    """What the counters showed; requested and allocated peak stand at the high water where that is known."""
    high = high_waters(matches)
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


def peak_of(spans: list[Span], matches: list[Match], request: Request) -> Peak:
    """The fullest moment of training."""
    span = fullest(spans)
    closed = span.closed
    return Peak(
        moment=high_waters(matches).get(span.last, span.closing),
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
    counted = only(told, protocol.Described)
    if counted is None:
        return Parameters(described.plan.total, described.plan.trainable)
    return Parameters(counted.total, counted.trainable)


def paged_bytes_of(spans: list[Span]) -> int:
    """Managed bytes at the closing that had the most of them."""
    return max(sum(holding.n_bytes for holding in span.closed.holdings if holding.space == "managed") for span in spans)


def state_of(told: Told) -> State:
    """What the readback guard says; on a real GPU nothing is in doubt."""
    guarded = only(told, protocol.Guarded)
    return guarded.state if guarded else "clean"


def counters_of(request: Request, told: Told, spans: list[Span]) -> dict[str, int]:
    """The numbers of the whole run."""
    finished, started = only(told, protocol.Finished), only(told, protocol.Started)
    # The context of a simulated card is a constant, and where managed pages lie is not simulated.
    context = started.passport.get("context bytes") if started and not request.phantom else None
    resident = _resident(spans, int(context) if context else None)
    ended = _shortage(spans[-1])
    return {**spans[-1].closed.totals, **ended, **(finished.host if finished else {}), **resident}


def _shortage(last: Span) -> dict[str, int]:
    """What torch asked for where memory ended, what the card had left, and what lay unused in torch's segments."""
    shortage = last.closed.shortage
    if shortage is None:
        return {}
    there = {"asked": shortage.asked, "free": shortage.free, "unallocated": unallocated(last)}
    return {f"{what} where memory ended": n_bytes for what, n_bytes in there.items()}


def _resident(spans: list[Span], context_bytes: int | None) -> dict[str, int]:
    """Managed bytes on the GPU at the last closing: the driver's word, or what is left of the bytes used by anyone."""
    last, paged = spans[-1].closed, paged_bytes_of(spans)
    if not paged:
        return {}
    if last.resident is not None:
        return {RESIDENT: last.resident}
    if context_bytes is None or DRIVER_USED not in last.device:
        return {}
    left = last.device[DRIVER_USED] - last.reserved.current - context_bytes
    return {SUBTRACTED: min(max(left, 0), paged)}


def error_of_subtraction(counters: dict[str, int]) -> list[str]:
    """A sentence where managed bytes were counted by subtraction."""
    if SUBTRACTED not in counters:
        return []
    sentence = (
        "resident managed bytes are what the device uses less torch's segments and the context at the start: off by "
        "pages of 2 MiB, by modules loaded since, and by what other programs took or gave back"
    )
    return [sentence]
