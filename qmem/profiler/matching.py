"""Which phases of the clean steps the traced ones can speak for, and what they say of them.

Traced is one more step, or the same steps once more where memory ended.  A traced phase speaks for a closing where as
many blocks of the same sizes have no name, and for a high water that leaves as many bytes for what has none.
"""

from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec import structs

from qmem.ledger import Item, Kind, Moment
from qmem.profiler import protocol
from qmem.profiler.protocol import Block, Place, TracedPhase
from qmem.profiler.spans import Span, fullest, items_of, only
from qmem.profiler.supervisor import Told

_NONE_KEPT: Mapping[Block, int] = {}


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


def matches_of(
    told: Told, spans: list[Span], residents: list[Item], kept: Mapping[Block, int] = _NONE_KEPT
) -> list[Match]:
    """The clean phases that the traced step can speak for.

    ``kept`` are blocks without a name that outlive the step that made them, and that step: in later ones they are
    residents.
    """
    traced = only(told, protocol.Traced)
    phases = traced.phases if traced else ()
    same, alike = ({phase.place[first:]: phase for phase in phases} for first in (0, 1))
    workspaces = _workspaces(told, spans)
    peak, last, found = fullest(spans).closed.place, spans[-1].closed.place, []
    for span in spans:
        phase = same.get(span.closed.place) or alike.get(span.closed.place[1:])
        told_of = span.closed.unfinished or _is_told(span.closed.place, peak, last)
        if told_of and phase is not None and span.first < span.last:
            older = frozenset(block for block, step in kept.items() if step < span.closed.place.step)
            match = Match(span, phase, at_high_water=False, at_closing=_same_sizes(span, phase, workspaces | older))
            found.append(_compared_at_high_water(match, residents))
    return found


def _is_told(place: Place, peak: Place, last: Place) -> bool:
    """Whether a phase's transient memory is told: other steps and micro-steps are like the second ones."""
    return place.step > 0 and place.step in (1, 2, peak.step, last.step) and place.micro_step in (1, 2, peak.micro_step)


def _workspaces(told: Told, spans: list[Span]) -> frozenset[Block]:
    """The blocks that turned out to be workspaces; a block of another size at their address came before them."""
    event = only(told, protocol.Workspaces)
    addresses = event.addresses if event else ()
    return frozenset(block for block in spans[-1].closed.unnamed if block.address in addresses)


def _same_sizes(span: Span, phase: TracedPhase, workspaces: frozenset[Block]) -> bool:
    """Whether as many blocks of each size have no name when the phase closes."""
    sizes = Tally(block.n_bytes for block in span.closed.unnamed if block not in workspaces)
    traced: Tally[int] = Tally()
    for holding in phase.closing.holdings:
        traced[holding.n_bytes // holding.n_tensors] += holding.n_tensors
    return sizes == traced


def _compared_at_high_water(match: Match, residents: list[Item]) -> Match:
    """Whether what is not resident takes as many bytes at the high water, but for workspaces that are born there."""
    at = match.high_water
    held = sum(item.n_bytes for item in residents if is_requested(item) and item.alive(at))
    traced = sum(holding.n_bytes for holding in match.phase.high_water.holdings)
    excess = match.span.closed.requested.peak - held - traced
    born = [item for item in residents if item.kind is Kind.WORKSPACE and item.born == match.span.closing]
    if excess and excess == sum(item.n_bytes for item in born):
        return match._replace(at_high_water=True, workspaces=tuple(born))
    return match._replace(at_high_water=excess == 0)


def is_requested(item: Item) -> bool:
    """Whether torch counts the item as requested: on the GPU, and no rounding."""
    return item.space == "gpu" and item.kind is not Kind.ROUNDING


def transients_of(match: Match) -> Iterator[Item]:
    """What was alive at the high water and at the closing and has no name; each stands for one moment."""
    looks = (
        (match.at_high_water, match.high_water, match.phase.high_water),
        (match.at_closing, match.span.closing, match.phase.closing),
    )
    for holds, moment, seen in looks:
        for holding in seen.holdings if holds else ():
            yield from items_of(holding, moment, next_tick(moment))
    for item in match.workspaces:
        yield structs.replace(item, born=match.high_water, dies=next_tick(match.high_water))


def next_tick(moment: Moment) -> Moment:
    """The next tick of the same phase."""
    return Moment(moment.step, moment.micro_step, moment.phase, moment.tick + 1)


def high_waters(matches: list[Match]) -> dict[int, Moment]:
    """The moments of high water that are known, by the tick of the closing."""
    return {match.span.last: match.high_water for match in matches if match.at_high_water}
