"""From a trace to what a ledger holds: items that are alive when they should be, and readings.

What outlives the phase it is born in stands tensor by tensor (layers folded into a series).  What does not, and
what is not yet or no longer complete there, is grouped at the high water of its phase.  So at every phase's high
water and at its closing the items add up to the reading, to the byte.
"""

from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

from qmem.ledger import Item, Kind, Mark, Moment, Reading, Trace, Waterline
from qmem.ledger.series import series_name, with_range

_NEVER = 1 << 60


class PhaseSpan(NamedTuple):
    """A phase in the trace: its events ``first..last`` (``last`` excluded) and the event of its high water.

    Where no event takes the phase above the level that it begins at, that is the event before ``first``: torch's peak
    begins at what is held when it is reset, too.
    """

    mark: Mark
    first: int
    last: int
    high_water: int

    def moment(self, event: int) -> Moment:
        """The moment right after ``event`` of this phase."""
        return Moment(self.mark.step, self.mark.micro_step, self.mark.phase, event)

    @property
    def closing(self) -> Moment:
        """The moment after its last event."""
        return self.moment(self.last - 1)

    @property
    def start(self) -> int:
        """The event after which it begins."""
        return max(self.first - 1, 0)


class Settled(NamedTuple):
    """A trace, settled.

    Attributes:
        spans: the phases that have events, in order.
        requested, allocated: bytes after each event.
        items: all that the trace held, and the allocator's rounding of it.
        readings: current bytes at each closing and peak bytes of each phase.
    """

    spans: list[PhaseSpan]
    requested: list[int]
    allocated: list[int]
    items: list[Item]
    readings: list[Reading]

    @property
    def peak(self) -> PhaseSpan:
        """The phase with the highest high water; the first of equals."""
        return max(self.spans, key=lambda span: self.allocated[span.high_water])


def settle(trace: Trace, block_bytes: list[int], n_layers: int) -> Settled:
    """Settle a trace; ``block_bytes`` says what the allocator hands out for each handle."""
    sizes, events = trace.sizes, trace.events
    requested = list(accumulate(sizes[e] if e >= 0 else -sizes[~e] for e in events))
    allocated = list(accumulate(block_bytes[e] if e >= 0 else -block_bytes[~e] for e in events))
    spans = _spans(trace, allocated)
    readings = [*_readings(spans, requested, "requested"), *_readings(spans, allocated, "allocated")]
    items = _Holdings(trace, block_bytes, spans, n_layers).items()
    return Settled(spans, requested, allocated, items, readings)


def _spans(trace: Trace, allocated: list[int]) -> list[PhaseSpan]:
    """Marks that repeat a phase (one that is cut by ``empty_cache``) make one span."""
    marks: list[Mark] = []
    for mark in trace.marks:
        if not marks or mark[1:4] != marks[-1][1:4]:
            marks.append(mark)
    ends = [mark.event for mark in marks[1:]] + [len(trace.events)]
    spans = []
    for mark, last in zip(marks, ends, strict=True):
        if mark.event < last:
            span = PhaseSpan(mark, mark.event, last, mark.event)
            spans.append(span._replace(high_water=_highest(allocated, span)))
    return spans


def _highest(series: list[int], span: PhaseSpan) -> int:
    """The first event of a phase after which the most is held."""
    return series.index(max(series[span.start : span.last]), span.start)


def _readings(spans: list[PhaseSpan], series: list[int], waterline: Waterline) -> list[Reading]:
    readings = []
    for span in spans:
        at = _highest(series, span)
        peak, current = series[at], series[span.last - 1]
        readings += [
            Reading(moment=span.moment(at), waterline=waterline, measure="peak", n_bytes=peak, counter="walk"),
            Reading(moment=span.closing, waterline=waterline, measure="current", n_bytes=current, counter="walk"),
        ]
    return readings


class _Group:
    """Allocations that become one item; its reason is that of the biggest of them."""

    __slots__ = ("because", "biggest", "count", "n_bytes", "rounding")

    def __init__(self) -> None:
        self.count = self.n_bytes = self.rounding = self.biggest = 0
        self.because = ""

    def add(self, sizes: list[int], blocks: list[int], because: str) -> None:
        n_bytes, biggest = sum(sizes), max(sizes)
        self.count += len(sizes)
        self.n_bytes += n_bytes
        self.rounding += sum(blocks) - n_bytes
        if biggest > self.biggest:
            self.biggest, self.because = biggest, because


class _Life(NamedTuple):
    """When a group is alive: from the moment ``born`` until ``dies``, by phase and event."""

    born: Moment
    dies: Moment | None


class _Holdings:
    """One pass over all allocations, which puts each into its groups."""

    def __init__(self, trace: Trace, block_bytes: list[int], spans: list[PhaseSpan], n_layers: int) -> None:
        self.trace, self.block_bytes, self.spans, self.n_layers = trace, block_bytes, spans, n_layers
        self.groups: dict[tuple[_Life, Kind, str, str], _Group] = {}
        self.starts = [span.first for span in spans]

    def items(self) -> list[Item]:
        """The items, and the rounding of each where there is any."""
        births, deaths = self._lives()
        residents = self._residents(deaths)
        for (born, dies), handles in residents.items():
            end = None if dies == len(self.spans) else self.spans[dies].moment(self.starts[dies])
            self._group(_Life(self.spans[born].closing, end), handles)
        for span, handles in zip(self.spans, self._seen(births, deaths), strict=True):
            self._group(_Life(span.moment(span.high_water), span.moment(span.high_water + 1)), handles)
        return [item for key, group in self.groups.items() for item in self._items(key, group)]

    def _lives(self) -> tuple[list[int], list[int]]:
        """For each handle the event of its birth, and of its death or ``_NEVER``."""
        births = [0] * len(self.trace.sizes)
        deaths = [_NEVER] * len(births)
        for index, event in enumerate(self.trace.events):
            if event >= 0:
                births[event] = index
            else:
                deaths[~event] = index
        return births, deaths

    def _residents(self, deaths: list[int]) -> dict[tuple[int, int], list[int]]:
        """Handles that outlive the phase of their birth, by the phases of their birth and death."""
        residents: dict[tuple[int, int], list[int]] = {}
        events = self.trace.events
        for born, span in enumerate(self.spans):
            for handle in (e for e in events[span.first : span.last] if e >= 0 and deaths[e] >= span.last):
                death = deaths[handle]
                dies = len(self.spans) if death == _NEVER else bisect_right(self.starts, death) - 1
                residents.setdefault((born, dies), []).append(handle)
        return residents

    def _seen(self, births: list[int], deaths: list[int]) -> list[list[int]]:
        """For each phase the handles alive at its high water that no resident item counts there."""
        seen: list[list[int]] = [[] for _ in self.spans]
        for phase, span in enumerate(self.spans):
            first, high, last = span.first, span.high_water, span.last
            if high in (first - 1, last - 1):
                continue  # where it begins and where it closes there are only residents
            born_here = [e for e in self.trace.events[first : high + 1] if e >= 0 and deaths[e] > high]
            dying_here = [~e for e in self.trace.events[high + 1 : last] if e < 0 and births[~e] < first]
            seen[phase] = born_here + dying_here
        return seen

    def _group(self, life: _Life, handles: list[int]) -> None:
        """Sort handles of one life into groups of one owner; a series of layers is one owner."""
        table, labels = self.trace.label_table, self.trace.labels
        by_label: dict[int, list[int]] = {}
        for handle in handles:
            by_label.setdefault(labels[handle], []).append(handle)
        sizes, blocks = self.trace.sizes, self.block_bytes
        for label, members in by_label.items():
            kind, owner, because = table[label]
            key = (life, kind, series_name(owner), because)
            group = self.groups.setdefault(key, _Group())
            group.add([sizes[handle] for handle in members], [blocks[handle] for handle in members], because)

    def _items(self, key: tuple[_Life, Kind, str, str], group: _Group) -> list[Item]:
        (born, dies), kind, owner, because = key
        owner = with_range(owner, group.count, self.n_layers)
        items = [
            Item(n_bytes=group.n_bytes, kind=kind, owner=owner, born=born, dies=dies, because=because,
                 count=group.count)
        ]  # fmt: skip
        if group.rounding:
            items.append(
                Item(n_bytes=group.rounding, kind=Kind.ROUNDING, owner=owner, born=born, dies=dies, count=group.count)
            )
        return items
