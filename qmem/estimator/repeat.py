"""Decoder layers repeat: walk six of them, repeat the third in the trace.

A trace is cut into stretches that belong to a layer.  Within each run of stretches (a forward, a backward, a
loop over parameters) the events of a middle layer are the same as its neighbour's, but for the layer they speak
of.  So the trace of a model of any depth follows from the trace of the same model cut to six layers.
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

WALKED_LAYERS = 6
"""Two layers at each end, which may differ from the others, and two in the middle to compare with each other."""

_MIDDLE, _TWIN = 2, 3


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
    """How a deep model is cut: to ``walked`` layers, in which a period of ``period`` layers repeats."""

    walked: int
    period: int


def cut_of(kinds: Sequence[Any]) -> Cut | None:
    """The shortest cut of a model whose layers are of these kinds, or ``None`` where nothing repeats often enough.

    The periods at both ends may differ from the others.  The last takes what is left over; in the cut model it must be
    of the same kinds as in the whole one.
    """
    n_layers = len(kinds)
    for period in range(1, n_layers // (WALKED_LAYERS + 1) + 1):
        last = (n_layers // period - 1) * period
        walked_last = (WALKED_LAYERS - 1) * period
        alike = all(kinds[i] == kinds[i - period] for i in range(2 * period, last))
        if alike and kinds[last:] == kinds[walked_last : walked_last + n_layers - last]:
            return Cut(walked_last + n_layers - last, period)
    return None


def repeated(trace: Trace, regions: list[Region], n_layers: int, *, brief: bool, period: int = 1) -> Trace | None:
    """The trace of ``n_layers`` layers from that of six, or ``None`` if the layers in the middle differ.

    ``brief`` leaves out what is born and dies within one layer, but for the first and the last of the repeated
    ones: from one of them to the next every live byte count grows by the same amount, so the fullest moment lies in
    the first or the last.  Nothing that outlives a layer is left out.
    """
    stretches = _stretches(trace, _by_period(regions, period))
    templates = _Templates(trace, stretches).make()
    if not _middle_layers_are_alike(stretches, templates):
        return None
    return _Repeater(trace, n_layers // period, brief=brief).run(stretches, templates)


def _by_period(regions: list[Region], period: int) -> list[Region]:
    """The regions of whole periods; the last period takes what is left over."""
    if period == 1:
        return regions
    whole: list[Region] = []
    for event, layer in regions:
        of = None if layer is None else min(layer // period, WALKED_LAYERS - 1)
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

    def __init__(self, trace: Trace, stretches: list[_Stretch]) -> None:
        self.trace, self.stretches = trace, stretches
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
        both = home.layer != _NO_LAYER != layer and abs(home.layer - layer) < WALKED_LAYERS // 2
        of = home.layer - layer if both else home.layer
        return _Foreign(index, home.run, of, both, handle - home.first_handle)


def _middle_layers_are_alike(stretches: list[_Stretch], templates: list[_Template]) -> bool:
    """In every run all layers but the ends allocate the same, and the middle one and its twin free the same."""
    by_run: dict[int, dict[int, _Template]] = {}
    for stretch, template in zip(stretches, templates, strict=True):
        by_run.setdefault(stretch.run, {})[stretch.layer] = template
    for layers in by_run.values():
        if set(layers) == {_NO_LAYER}:
            # What a layer in the middle has made cannot be freed outside the layers: by whom, for the repeated ones?
            if any(1 < free.layer < WALKED_LAYERS - 2 for free in layers[_NO_LAYER].foreign):
                return False
            continue
        if set(layers) != set(range(WALKED_LAYERS)):
            return False
        if any(layers[layer].sizes != layers[1].sizes for layer in range(2, WALKED_LAYERS - 1)):
            return False
        middle, twin = layers[_MIDDLE], layers[_TWIN]
        if (middle.events, middle.foreign) != (twin.events, twin.foreign):
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

    def __init__(self, trace: Trace, n_layers: int, *, brief: bool) -> None:
        self.source, self.n_layers = trace, n_layers
        self.abridged = range(_MIDDLE + 1, n_layers - WALKED_LAYERS + _MIDDLE) if brief else range(0)
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
                of_layer = {stretches[i].layer: templates[i] for i in range(index, index + WALKED_LAYERS)}
                self._write_layers(of_layer, stretch)
                index += WALKED_LAYERS
        moved[len(self.source.events)] = len(self.longer.events)
        self.longer.marks = [mark._replace(event=moved[mark.event]) for mark in self.source.marks]
        return self.longer

    def _write_layers(self, of_layer: dict[int, _Template], first: _Stretch) -> None:
        """One run: from the first layer to the last or, in a backward, from the last to the first."""
        last = self.n_layers - 1
        lasting = _lasting(of_layer[_MIDDLE])
        for layer in range(self.n_layers) if first.layer == 0 else range(last, -1, -1):
            walked = layer if layer <= _MIDDLE else max(_MIDDLE, layer - self.n_layers + WALKED_LAYERS)
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
        elif home > 1:  # the last layers count from the end
            home += self.n_layers - WALKED_LAYERS
        start, rank = self.homes[free.run, home]
        return start + rank[free.ordinal]
