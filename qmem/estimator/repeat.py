"""Decoder layers repeat: walk six of them (of a steady step four), repeat one in the middle in the trace.

A trace is cut into stretches that belong to a layer.  Within each run of stretches (a forward, a backward, a
loop over parameters) the events of a middle layer are the same as its neighbour's, but for the layer they speak
of.  So the trace of a model of any depth follows from the trace of the same model cut to a few layers.
Where layers of several kinds take turns, a period of them stands for a layer: everything below speaks of layers, and
means periods.  :func:`repeated` refuses (returns ``None``) where the middle layers are not alike; then the walk is done
in full.
A test shows the result equal to the full walk, event by event.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from qmem.estimator.paper import Region
from qmem.ledger import Trace

ENDS = 2
"""Layers at each end, which may differ from the others: in the first step they do, two deep."""

STEADY_ENDS = 1
"""In a step like those before it, only the first and the last layer differ."""

_NO_LAYER = -1


class _Stretch(NamedTuple):
    """Events ``first..last`` of one layer, or of none; its allocations have the handles from ``first_handle`` on.

    A run is a sequence of stretches of distinct layers: a forward, a backward, a loop over parameters.
    """

    run: int
    layer: int
    first: int
    last: int
    first_handle: int


class _Foreign(NamedTuple):
    """A free, at place ``at`` of a template, of what another stretch has made: which run, layer and how-manieth there.

    Where both stretches are of a layer, ``layer`` is the ``distance`` between them.
    """

    at: int
    run: int
    layer: int
    distance: bool
    ordinal: int


class _Template(NamedTuple):
    """A stretch, ready to be repeated.

    Attributes:
        events: an allocation is its rank in the stretch, a free of it the complement; foreign frees are 0.
        sizes, labels: of the allocations, by rank.
        foreign: the frees of what other stretches have made.
        rank: of each allocation that is kept, by its ordinal in the walked stretch.
    """

    events: list[int]
    sizes: list[int]
    labels: list[int]
    foreign: list[_Foreign]
    rank: dict[int, int] | range


class Cut(NamedTuple):
    """How a deep model is cut: to ``walked`` layers, in which a period of ``period`` layers repeats.

    Between ``ends`` periods at each end lie two, of which the first, the middle one, is repeated, and compared with
    the second, its twin.
    """

    walked: int
    period: int
    ends: int = ENDS

    @property
    def periods(self) -> int:
        """How many periods are walked."""
        return 2 * self.ends + 2

    @property
    def middle(self) -> int:
        """The period that is repeated."""
        return self.ends

    @property
    def twin(self) -> int:
        """The period that it is compared with."""
        return self.ends + 1


def cut_of(kinds: Sequence[Any], ends: int = ENDS) -> Cut | None:
    """The shortest cut of a model whose layers are of these kinds, or ``None`` where nothing repeats often enough.

    The periods at both ends may differ from the others.  The last takes what is left over; in the cut model it must be
    of the same kinds as in the whole one.
    """
    n_layers = len(kinds)
    walked = Cut(0, 0, ends).periods
    for period in range(1, n_layers // (walked + 1) + 1):
        last = (n_layers // period - 1) * period
        walked_last = (walked - 1) * period
        alike = all(kinds[i] == kinds[i - period] for i in range(2 * period, last))
        if alike and kinds[last:] == kinds[walked_last : walked_last + n_layers - last]:
            return Cut(walked_last + n_layers - last, period, ends)
    return None


def repeated(trace: Trace, regions: list[Region], n_layers: int, cut: Cut, *, brief: bool) -> Trace | None:
    """The trace of ``n_layers`` layers from that of the cut model, or ``None`` if the layers in the middle differ.

    ``brief`` leaves out what is born and dies within one layer, but for the first and the last of the repeated
    ones: from one of them to the next every live byte count grows by the same amount, so the fullest moment lies in
    the first or the last.  Nothing that outlives a layer is left out.
    """
    stretches = _stretches(trace, _by_period(regions, cut))
    templates = _Templates(trace, stretches, cut).make()
    if not _middle_layers_are_alike(stretches, templates, cut):
        return None
    return _Repeater(trace, n_layers // cut.period, cut, brief=brief).run(stretches, templates)


def _by_period(regions: list[Region], cut: Cut) -> list[Region]:
    """The regions of whole periods; the last period takes what is left over."""
    if cut.period == 1:
        return regions
    whole: list[Region] = []
    for event, layer in regions:
        of = None if layer is None else min(layer // cut.period, cut.periods - 1)
        if of is None or not whole or whole[-1].layer != of:
            whole.append(Region(event, of))
    return whole


def _stretches(trace: Trace, regions: list[Region]) -> list[_Stretch]:
    """Cut the events at the layer changes."""
    starts = [Region(0, None), *regions]
    ends = [region.event for region in starts[1:]] + [len(trace.events)]
    stretches: list[_Stretch] = []
    run, seen, handle = 0, set[int](), 0
    for (first, of), last in zip(starts, ends, strict=True):
        layer = _NO_LAYER if of is None else of
        if layer in seen or _NO_LAYER in (layer, *seen):
            run, seen = run + 1, set()
        seen.add(layer)
        stretches.append(_Stretch(run, layer, first, last, handle))
        handle += sum(event >= 0 for event in trace.events[first:last])
    return stretches


class _Templates:
    """Makes a template of every stretch."""

    def __init__(self, trace: Trace, stretches: list[_Stretch], cut: Cut) -> None:
        self.trace, self.stretches, self.cut = trace, stretches, cut
        self.first_handles = [stretch.first_handle for stretch in stretches]

    def make(self) -> list[_Template]:
        ends = [*self.first_handles[1:], len(self.trace.sizes)]
        return [self._template(stretch, end) for stretch, end in zip(self.stretches, ends, strict=True)]

    def _template(self, stretch: _Stretch, end: int) -> _Template:
        start = stretch.first_handle
        events, foreign = [], []
        for index, event in enumerate(self.trace.events[stretch.first : stretch.last]):
            if event >= 0:
                events.append(event - start)
            elif ~event >= start:
                events.append(event + start)
            else:
                events.append(0)
                foreign.append(self._foreign(index, ~event, stretch.layer))
        sizes, labels = self.trace.sizes[start:end], self.trace.labels[start:end]
        return _Template(events, sizes, labels, foreign, range(end - start))

    def _foreign(self, index: int, handle: int, layer: int) -> _Foreign:
        home = self.stretches[bisect_right(self.first_handles, handle) - 1]
        # What a layer at one end frees of a layer at the other stays with the ends, however many lie between.
        both = home.layer != _NO_LAYER != layer and abs(home.layer - layer) < self.cut.periods // 2
        of = home.layer - layer if both else home.layer
        return _Foreign(index, home.run, of, both, handle - home.first_handle)


def _middle_layers_are_alike(stretches: list[_Stretch], templates: list[_Template], cut: Cut) -> bool:
    """In every run the middle layer and its twin allocate and free the same; the layers at the ends may differ."""
    by_run: dict[int, dict[int, _Template]] = {}
    for stretch, template in zip(stretches, templates, strict=True):
        by_run.setdefault(stretch.run, {})[stretch.layer] = template
    for layers in by_run.values():
        if set(layers) == {_NO_LAYER}:
            # What a layer in the middle has made cannot be freed outside the layers: by whom, for the repeated ones?
            if any(cut.middle <= free.layer <= cut.twin for free in layers[_NO_LAYER].foreign):
                return False
            continue
        if set(layers) != set(range(cut.periods)):
            return False
        middle, twin = layers[cut.middle], layers[cut.twin]
        if (middle.events, middle.sizes, middle.foreign) != (twin.events, twin.sizes, twin.foreign):
            return False
    return True


def _lasting(template: _Template) -> _Template:
    """A template without the allocations that die in it."""
    passing = {~event for event in template.events if event < 0}
    foreign_at = {free.at for free in template.foreign}
    rank: dict[int, int] = {}
    events: list[int] = []
    kept: list[int] = []
    moved: list[_Foreign] = []
    foreign = iter(template.foreign)
    for index, event in enumerate(template.events):
        if index in foreign_at:
            moved.append(next(foreign)._replace(at=len(events)))
            events.append(0)
        elif event >= 0 and event not in passing:
            rank[event] = len(kept)
            events.append(len(kept))
            kept.append(event)
    sizes, labels = [template.sizes[e] for e in kept], [template.labels[e] for e in kept]
    return _Template(events, sizes, labels, moved, rank)


class _Repeater:
    """Writes the events of all layers, giving each allocation its new handle.

    ``homes`` say, by run and layer, from which handle on a stretch was written, and the ranks of its allocations.
    """

    def __init__(self, trace: Trace, n_layers: int, cut: Cut, *, brief: bool) -> None:
        self.source, self.n_layers, self.cut = trace, n_layers, cut
        self.abridged = range(cut.middle + 1, n_layers - cut.periods + cut.middle) if brief else range(0)
        self.longer = Trace()
        self.longer.label_table = trace.label_table
        self.homes: dict[tuple[int, int], tuple[int, dict[int, int] | range]] = {}

    def run(self, stretches: list[_Stretch], templates: list[_Template]) -> Trace:
        """Write all stretches; a run of layers is written for every layer of the model."""
        moved: dict[int, int] = {}
        index = 0
        while index < len(stretches):
            stretch = stretches[index]
            moved[stretch.first] = len(self.longer.events)
            if stretch.layer == _NO_LAYER:
                self._write(templates[index], stretch.run, _NO_LAYER)
                index += 1
            else:
                of_layer = {stretches[i].layer: templates[i] for i in range(index, index + self.cut.periods)}
                self._write_layers(of_layer, stretch)
                index += self.cut.periods
        moved[len(self.source.events)] = len(self.longer.events)
        self.longer.marks = [mark._replace(event=moved[mark.event]) for mark in self.source.marks]
        return self.longer

    def _write_layers(self, of_layer: dict[int, _Template], first: _Stretch) -> None:
        """One run: from the first layer to the last or, in a backward, from the last to the first."""
        last, middle = self.n_layers - 1, self.cut.middle
        lasting = _lasting(of_layer[middle])
        for layer in range(self.n_layers) if first.layer == 0 else range(last, -1, -1):
            walked = layer if layer <= middle else max(middle, layer - self.n_layers + self.cut.periods)
            self._write(lasting if layer in self.abridged else of_layer[walked], first.run, layer)

    def _write(self, template: _Template, run: int, layer: int) -> None:
        longer = self.longer
        start = len(longer.sizes)
        self.homes[run, layer] = (start, template.rank)
        written = [event + start if event >= 0 else event - start for event in template.events]
        for free in template.foreign:
            written[free.at] = ~self._new_handle(free, layer)
        longer.events += written
        longer.sizes += template.sizes
        longer.labels += template.labels

    def _new_handle(self, free: _Foreign, layer: int) -> int:
        """What a free of the walked model frees in the longer one, when it is written for ``layer``."""
        home = free.layer
        if free.distance:
            home += layer
        elif home > self.cut.twin:  # the last layers count from the end
            home += self.n_layers - self.cut.periods
        start, rank = self.homes[free.run, home]
        return start + rank[free.ordinal]
