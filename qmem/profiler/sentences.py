"""What a reader must know about a run, in sentences: what was assumed, and what went wrong."""

from collections.abc import Iterator
from typing import NamedTuple

from qmem.architecture import AdapterPlan, Architecture, position_warning
from qmem.catalogue import FoundModel
from qmem.catalogue.stacks import StackFacts
from qmem.ledger import Moment
from qmem.profiler import protocol
from qmem.profiler.environment import replaced_variables
from qmem.profiler.matching import Match
from qmem.profiler.protocol import Request
from qmem.profiler.spans import Span, fullest, only
from qmem.profiler.supervisor import Told
from qmem.units import format_bytes

RETRIED = "the card was full: torch gave segments back and tried again, so reserved says nothing about the need"


class Described(NamedTuple):
    """What was asked, and what follows from it without running anything."""

    request: Request
    found: FoundModel
    architecture: Architecture
    plan: AdapterPlan
    facts: StackFacts


def noted(told: Told, *, is_warning: bool) -> list[str]:
    """The sentences that the worker told itself."""
    notes = [event for event in told.events if isinstance(event, protocol.Noted)]
    return [note.sentence for note in notes if note.is_warning is is_warning]


def assumptions_of(described: Described, told: Told, matches: list[Match]) -> Iterator[str]:
    """What holds for the numbers without being measured."""
    request = described.request
    if request.phantom:
        yield "simulated: sizes of context and modules, resident pages and times are not those of a card"
    guarded = only(told, protocol.Guarded)
    yield from guarded.assumptions if guarded else ()
    if request.weights is None:
        yield "weights are made up: no size depends on their values"
    mask = "an attention mask of ones" if described.facts.attention_mask else "no attention mask"
    yield f"batches are full sequences of random tokens, every position is a label, and {mask} is passed"
    if any(match.phase.place == match.span.closed.place for match in matches):
        yield "owners of transient memory are those of the same run once more, traced and found to end alike"
    elif matches:
        yield "owners of transient memory are those of one more step, traced after the clean ones and found like them"


def warnings_of(described: Described, told: Told, spans: list[Span], matches: list[Match]) -> Iterator[str]:
    """What went wrong, or may mislead."""
    if told.ended != "complete":
        yield f"the run ended early in the {_where(told, spans)}, {told.ended}: {told.message}"
    if spans[-1].closed.shortage is not None:
        is_expandable = described.request.job.expandable_segments
        yield shortage_in_words(spans[-1], advice="" if is_expandable else "--expandable-segments may help")
    guarded = only(told, protocol.Guarded)
    yield from guarded.sentences if guarded else ()
    yield from other_versions(described.facts, told)
    if spans[-1].closed.totals["alloc_retries"]:
        yield RETRIED
    yield from unlike(fullest(spans), matches)
    replaced = replaced_variables()
    if replaced:
        yield f"not handed to the run, which the job decides: {', '.join(replaced)}"
    beyond = position_warning(described.architecture, described.request.job.seq)
    yield from ([beyond] if beyond else [])
    yield from described.found.notes


def other_versions(facts: StackFacts, told: Told) -> Iterator[str]:
    """A sentence where the libraries are not those that the stack's facts were read in."""
    started = only(told, protocol.Started)
    installed = started.passport if started else {}
    others = [
        f"{library} {installed[library]} (not {version})"
        for library, version in facts.versions.items()
        if library in installed and installed[library].partition("+")[0] != version
    ]
    if others:
        yield f"this is not the stack {facts.name} as it is known: it ran with {', '.join(others)}"


def _where(told: Told, spans: list[Span]) -> str:
    entered = [event for event in told.events if isinstance(event, protocol.Entered)]
    place = entered[-1].place if entered else spans[-1].closed.place
    return str(Moment(*place, 0))


def shortage_in_words(last: Span, *, advice: str) -> str:
    """How much of an out of memory was fragmentation: bytes that are there, but not in one piece."""
    shortage = last.closed.shortage
    assert shortage is not None, "asked before"
    unused = unallocated(last)
    is_enough = shortage.free + unused >= shortage.asked
    enough = f"enough, but not in one piece{f'; {advice}' if advice else ''}"
    why = enough if is_enough else "too little, however it is arranged"
    return (
        f"memory ended where torch asked for {format_bytes(shortage.asked)}: {format_bytes(shortage.free)} were free "
        f"on the card, {format_bytes(unused)} lay unused between blocks in torch's segments; together {why}"
    )


def unallocated(span: Span) -> int:
    """Bytes of torch's segments that no block used at a closing."""
    return span.closed.reserved.current - span.closed.active.current


def unlike(peak: Span, matches: list[Match]) -> Iterator[str]:
    """A sentence where the traced step cannot tell what the peak held."""
    match = next((match for match in matches if match.span is peak), None)
    if match is not None and not match.at_high_water:
        excess = match.phase.high_water.n_bytes - peak.closed.requested.peak
        yield (
            f"the traced step requested {abs(excess):,} B {'more' if excess > 0 else 'less'} at the peak than the "
            "clean one: what it held there beside named tensors is unexplained"
        )
