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


def assumptions_of(described: Described, matches: list[Match]) -> Iterator[str]:
    """What holds for the numbers without being measured."""
    request = described.request
    if request.phantom:
        yield "simulated: sizes of context and modules, resident pages and times are not those of a card"
    if request.weights is None:
        yield "weights are made up: no size depends on their values"
    yield "batches are full sequences of random tokens, every position is a label, and no attention mask is passed"
    if matches:
        yield "owners of transient memory are those of one more step, traced after the clean ones and found like them"


def warnings_of(described: Described, told: Told, spans: list[Span], matches: list[Match]) -> Iterator[str]:
    """What went wrong, or may mislead."""
    if told.ended != "complete":
        yield f"the run ended early in the {_where(told, spans)}, {told.ended}: {told.message}"
    guarded = only(told, protocol.Guarded)
    if guarded is not None and guarded.state != "clean":
        yield from guarded.sentences
    if spans[-1].closed.totals["alloc_retries"]:
        yield "the card was full: torch gave segments back and tried again, so reserved says nothing about the need"
    yield from _unlike(fullest(spans), matches)
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


def _unlike(peak: Span, matches: list[Match]) -> Iterator[str]:
    """A sentence where the traced step cannot tell what the peak held."""
    match = next((match for match in matches if match.span is peak), None)
    if match is not None and not match.at_high_water:
        excess = match.phase.high_water.n_bytes - peak.closed.requested.peak
        yield (
            f"the traced step requested {abs(excess):,} B {'more' if excess > 0 else 'less'} at the peak than the "
            "clean one: what it held there beside named tensors is unexplained"
        )
