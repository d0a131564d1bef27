"""Decoder layers repeat: walk five of them, repeat the middle one in the trace.

A trace is cut into stretches that belong to a layer.  Within each run of stretches (a forward, a backward, a
loop over parameters) the events of a middle layer are the same as its neighbour's, but for the layer they speak
of.  So the trace of a model of any depth follows from the trace of the same model cut to five layers.
:func:`repeated` refuses (returns ``None``) where the middle layers are not alike; then the walk is done in full.
A test shows the result equal to the full walk, event by event.
"""

from typing import NamedTuple

from qmem.estimator.paper import Region
from qmem.ledger import Trace

WALKED_LAYERS = 5
_MIDDLE = 2


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


def repeated(trace: Trace, regions: list[Region], n_layers: int) -> Trace | None:
    """The trace of ``n_layers`` layers from that of five, or ``None`` if the layers in the middle differ."""
    stretches = _stretches(regions, len(trace.events))
    places = _places(trace, stretches)
    if not _middle_layers_are_alike(trace, stretches, places):
        return None
    return _Repeater(trace, places, n_layers).run(stretches)


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
    """In every run layers 1, 2 and 3 allocate the same, and 2 frees what its predecessor in the run frees."""
    by_run: dict[int, dict[int, _Stretch]] = {}
    for stretch in stretches:
        by_run.setdefault(stretch.run, {})[stretch.layer] = stretch
    for layers in by_run.values():
        if set(layers) == {-1}:
            continue
        if set(layers) != set(range(WALKED_LAYERS)):
            return False
        forward = layers[1].first <= layers[_MIDDLE].first
        twin = _MIDDLE + 1 if forward else _MIDDLE - 1
        shapes = [_allocations(trace, layers[layer]) for layer in (1, 2, 3)]
        if not shapes[0] == shapes[1] == shapes[2]:
            return False
        if _relative(trace, layers[_MIDDLE], places) != _relative(trace, layers[twin], places):
            return False
    return True


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
    """Writes the events of all layers, giving each allocation its new handle."""

    def __init__(self, trace: Trace, places: list[_Place], n_layers: int) -> None:
        self.source, self.places, self.n_layers = trace, places, n_layers
        self.longer = Trace()
        self.longer.label_table = trace.label_table
        self.handles: dict[tuple[int, int], list[int]] = {}

    def run(self, stretches: list[_Stretch]) -> Trace:
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
            for target in self._order(stretches[index : index + WALKED_LAYERS]):
                self._copy(layers[self._template(target)], target)
            index += WALKED_LAYERS
        moved[len(self.source.events)] = len(self.longer.events)
        self.longer.marks = [mark._replace(event=moved[mark.event]) for mark in self.source.marks]
        return self.longer

    def _order(self, stretches: list[_Stretch]) -> range:
        return range(self.n_layers) if stretches[0].layer == 0 else range(self.n_layers - 1, -1, -1)

    def _template(self, layer: int) -> int:
        """The walked layer that stands for ``layer``: the first two and the last two for themselves."""
        if layer <= _MIDDLE:
            return layer
        return max(_MIDDLE, layer - self.n_layers + WALKED_LAYERS)

    def _copy(self, stretch: _Stretch, target: int) -> None:
        source, longer, places, handles = self.source, self.longer, self.places, self.handles
        mine = handles.setdefault((stretch.run, target), [])
        shift = target - stretch.layer
        for event in source.events[stretch.first : stretch.last]:
            if event >= 0:
                mine.append(len(longer.sizes))
                longer.events.append(len(longer.sizes))
                longer.sizes.append(source.sizes[event])
                longer.labels.append(source.labels[event])
            else:
                run, layer, ordinal = places[~event]
                longer.events.append(~handles[run, layer + shift if layer >= 0 else -1][ordinal])
