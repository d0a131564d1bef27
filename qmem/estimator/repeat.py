"""Decoder layers repeat: walk six of them, repeat the third in the trace.

A trace is cut into stretches that belong to a layer.  Within each run of stretches (a forward, a backward, a
loop over parameters) the events of a middle layer are the same as its neighbour's, but for the layer they speak
of.  So the trace of a model of any depth follows from the trace of the same model cut to six layers.
:func:`repeated` refuses (returns ``None``) where the middle layers are not alike; then the walk is done in full.
A test shows the result equal to the full walk, event by event.
"""

from typing import NamedTuple

from qmem.estimator.paper import Region
from qmem.ledger import Trace

WALKED_LAYERS = 6
"""Two layers at each end, which may differ from the others, and two in the middle to compare with each other."""

_MIDDLE, _TWIN = 2, 3


class _Place(NamedTuple):
    """Where an allocation was made: in which run, for which layer (-1: none), as the how-manieth there."""

    run: int
    layer: int
    ordinal: int


class _Stretch(NamedTuple):
    run: int
    layer: int
    first: int
    last: int


def repeated(trace: Trace, regions: list[Region], n_layers: int, *, brief: bool) -> Trace | None:
    """The trace of ``n_layers`` layers from that of six, or ``None`` if the layers in the middle differ.

    ``brief`` leaves out what is born and dies within one layer, but for the first and the last of the repeated
    ones: from one of them to the next every live byte count grows by the same amount, so the fullest moment lies in
    the first or the last.  Nothing that outlives a layer is left out.
    """
    stretches = _stretches(regions, len(trace.events))
    places = _places(trace, stretches)
    if not _middle_layers_are_alike(trace, stretches, places):
        return None
    return _Repeater(trace, places, n_layers, brief=brief).run(stretches)


def _stretches(regions: list[Region], n_events: int) -> list[_Stretch]:
    """Cut the events at the layer changes; a run is a maximal sequence of stretches of distinct layers."""
    ends = [region.event for region in regions[1:]] + [n_events]
    stretches, run, seen = [_Stretch(0, -1, 0, regions[0].event if regions else n_events)], 0, {-1}
    for region, end in zip(regions, ends, strict=True):
        layer = -1 if region.layer is None else region.layer
        if layer in seen or layer == -1 or -1 in seen:
            run, seen = run + 1, set()
        seen.add(layer)
        stretches.append(_Stretch(run, layer, region.event, end))
    return stretches


def _places(trace: Trace, stretches: list[_Stretch]) -> list[_Place]:
    places = []
    for stretch in stretches:
        ordinal = 0
        for event in trace.events[stretch.first : stretch.last]:
            if event >= 0:
                places.append(_Place(stretch.run, stretch.layer, ordinal))
                ordinal += 1
    return places


def _middle_layers_are_alike(trace: Trace, stretches: list[_Stretch], places: list[_Place]) -> bool:
    """In every run all layers but the ends allocate the same, and the middle one and its twin free the same."""
    by_run: dict[int, dict[int, _Stretch]] = {}
    for stretch in stretches:
        by_run.setdefault(stretch.run, {})[stretch.layer] = stretch
        if stretch.layer < 0 and _frees_of_middle_layers(trace, stretch, places):
            return False
    for layers in by_run.values():
        if set(layers) == {-1}:
            continue
        if set(layers) != set(range(WALKED_LAYERS)):
            return False
        first, *others = (_allocations(trace, layers[layer]) for layer in range(1, WALKED_LAYERS - 1))
        if any(other != first for other in others):
            return False
        if _relative(trace, layers[_MIDDLE], places) != _relative(trace, layers[_TWIN], places):
            return False
    return True


def _frees_of_middle_layers(trace: Trace, stretch: _Stretch, places: list[_Place]) -> bool:
    """Whether a stretch of no layer frees what a layer in the middle has made: that cannot be repeated."""
    events = trace.events[stretch.first : stretch.last]
    return any(1 < places[~event].layer < WALKED_LAYERS - 2 for event in events if event < 0)


def _allocations(trace: Trace, stretch: _Stretch) -> list[int]:
    return [trace.sizes[event] for event in trace.events[stretch.first : stretch.last] if event >= 0]


def _relative(trace: Trace, stretch: _Stretch, places: list[_Place]) -> list[tuple[int, int, int]]:
    """The events of a stretch, each by run, distance in layers and ordinal."""
    described = []
    for event in trace.events[stretch.first : stretch.last]:
        place = places[event if event >= 0 else ~event]
        distance = place.layer - stretch.layer if place.layer >= 0 else 1 << 30
        described.append((place.run if event < 0 else ~place.run, distance, place.ordinal))
    return described


class _Repeater:
    """Writes the events of all layers, giving each allocation its new handle.

    ``handles`` are the new handles by run, layer and ordinal.
    """

    def __init__(self, trace: Trace, places: list[_Place], n_layers: int, *, brief: bool) -> None:
        self.source, self.places, self.n_layers = trace, places, n_layers
        self.abridged = range(_MIDDLE + 1, n_layers - WALKED_LAYERS + _MIDDLE) if brief else range(0)
        self.longer = Trace()
        self.longer.label_table = trace.label_table
        self.handles: dict[tuple[int, int], dict[int, int]] = {}

    def run(self, stretches: list[_Stretch]) -> Trace:
        """Write all stretches; a run of layers is written for every layer of the model."""
        moved: dict[int, int] = {}
        index = 0
        while index < len(stretches):
            stretch = stretches[index]
            moved[stretch.first] = len(self.longer.events)
            if stretch.layer < 0:
                self._copy(stretch, -1)
                index += 1
                continue
            layers = {s.layer: s for s in stretches[index : index + WALKED_LAYERS]}
            lasting = self._lasting(layers[_MIDDLE])
            for target in self._order(stretch):
                if target in self.abridged:
                    self._copy(layers[_MIDDLE], target, lasting)
                else:
                    self._copy(layers[self._template(target)], target)
            index += WALKED_LAYERS
        moved[len(self.source.events)] = len(self.longer.events)
        self.longer.marks = [mark._replace(event=moved[mark.event]) for mark in self.source.marks]
        return self.longer

    def _order(self, first: _Stretch) -> range:
        return range(self.n_layers) if first.layer == 0 else range(self.n_layers - 1, -1, -1)

    def _template(self, layer: int) -> int:
        """The walked layer that stands for ``layer``: the ends for themselves."""
        if layer <= _MIDDLE:
            return layer
        return max(_MIDDLE, layer - self.n_layers + WALKED_LAYERS)

    def _lasting(self, stretch: _Stretch) -> list[int]:
        """The events of a stretch without the allocations that die in it."""
        events = self.source.events[stretch.first : stretch.last]
        born = {event for event in events if event >= 0}
        passing = {~event for event in events if event < 0} & born
        return [event for event in events if (event if event >= 0 else ~event) not in passing]

    def _copy(self, stretch: _Stretch, target: int, events: list[int] | None = None) -> None:
        """Write a stretch, or the given events of it, for the layer ``target``."""
        source, longer, places, handles = self.source, self.longer, self.places, self.handles
        mine = handles.setdefault((stretch.run, target), {})
        shift = target - stretch.layer if target >= 0 else self.n_layers - WALKED_LAYERS
        for event in source.events[stretch.first : stretch.last] if events is None else events:
            if event >= 0:
                mine[places[event].ordinal] = len(longer.sizes)
                longer.events.append(len(longer.sizes))
                longer.sizes.append(source.sizes[event])
                longer.labels.append(source.labels[event])
            else:
                run, layer, ordinal = places[~event]
                if layer > 1 or target >= 0 <= layer:
                    layer += shift
                longer.events.append(~handles[run, layer][ordinal])
