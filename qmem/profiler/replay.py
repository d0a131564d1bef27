"""From the history of what was traced to what was alive at each phase's high water and at its closing.

What has a name at both ends of a phase is counted there by that name; everything else that is alive is told here,
so that both together are all requested bytes.
"""

from typing import Any, NamedTuple

from qmem.allocator.rounding import round_to_grain
from qmem.ledger import Kind, Phase
from qmem.profiler.labels import Label, label_of
from qmem.profiler.names import Named, fold
from qmem.profiler.protocol import Block, Place, Seen, TracedPhase

NOT_NAMED = Label("not named", Kind.UNEXPLAINED, "alive before the history began")


class Mark(NamedTuple):
    """The closing of a phase: the events so far, and what had a name, by address."""

    place: Place
    tick: int
    named: dict[int, Named]


class Recording:
    """What the tracer brought home.

    Attributes:
        before: the moment it began; ``blocks`` were alive then.
        marks: the closings of the step's phases.
        history: torch's entries, in order.
        layer_inputs: addresses of the inputs of layers, by the tick at which they were passed.
        head_done: the ticks at which the backward of the head was over, one a micro-step.
        was_cut_off: memory ended in the last phase.
        n_earlier: how many of the events came before it began.
    """

    def __init__(self, before: Mark, blocks: dict[int, Block]) -> None:
        self.before, self.blocks = before, blocks
        self.marks: list[Mark] = []
        self.history: list[dict[str, Any]] = []
        self.layer_inputs: dict[int, list[int]] = {}
        self.head_done: list[int] = []
        self.was_cut_off = False
        self.n_earlier = 0

    @property
    def events(self) -> list[dict[str, Any]]:
        """The allocations and frees, in order."""
        return [entry for entry in self.history if entry["action"] in ("alloc", "free_completed")]


class _Live(NamedTuple):
    """An allocation that is alive; its stack is read only where it is looked at.

    Attributes:
        entry: torch's entry of it; absent where it was there before.
        phase, in_head: when it was born.
        is_layer_input: whether it was passed to a decoder layer in the forward.
    """

    n_bytes: int
    block_bytes: int
    entry: dict[str, Any] | None = None
    phase: Phase = "rest"
    in_head: bool = False
    is_layer_input: bool = False

    @property
    def label(self) -> Label:
        """What it was for."""
        if self.entry is None:
            return NOT_NAMED
        label = label_of(self.entry, self.phase, in_head=self.in_head)
        return label._replace(kind=Kind.CHECKPOINT) if self.is_layer_input else label

    def label_in(self, phase: Phase) -> Label:
        """The label in a phase; what is older says since when."""
        label = self.label
        is_older = self.entry is not None and self.phase != phase
        return label._replace(because=f"{label.because}, since the {self.phase}") if is_older else label


def by_address(named: list[Named]) -> dict[int, Named]:
    """The named tensors inside the allocator's memory; of several with one storage the first."""
    found: dict[int, Named] = {}
    for tensor in named:
        if not tensor.managed:
            found.setdefault(tensor.address, tensor)
    return found


def replay(recording: Recording, workspaces: dict[int, Block], n_layers: int) -> tuple[TracedPhase, ...]:
    """Every phase of the traced step; ``workspaces`` are blocks that all closings count by name."""
    earlier, events = recording.events[: recording.n_earlier], recording.events[recording.n_earlier :]
    made = {entry["addr"]: entry for entry in earlier if entry["action"] == "alloc"}
    # What is made between two steps is for the forward of the next one.
    live = {at: _Live(*block[1:], made.get(at), "forward") for at, block in recording.blocks.items()}
    born = _births(workspaces, events, recording.before.tick)
    phases, first, start = [], 0, _with_workspaces(recording.before, born)
    for mark in recording.marks:
        last = first + mark.tick - start.tick
        end = _with_workspaces(mark, born)
        phases.append(_Stretch(recording, start, end, live, n_layers).run(events[first:last]))
        first, start = last, end
    return tuple(phases)


def _births(workspaces: dict[int, Block], events: list[dict[str, Any]], before: int) -> dict[int, int]:
    """The ticks at which the workspaces were there; one that the history has not seen coming was there before it."""
    born = dict.fromkeys(workspaces, before)
    for tick, entry in enumerate(events, start=before + 1):
        if entry["action"] == "alloc" and entry["addr"] in born:
            born[entry["addr"]] = tick
    return born


def _with_workspaces(mark: Mark, born: dict[int, int]) -> Mark:
    """The closing with the workspaces that are there by then under their name."""
    there = [address for address, tick in born.items() if tick <= mark.tick]
    return mark._replace(named=mark.named | {address: _workspace(address) for address in there})


def _workspace(address: int) -> Named:
    return Named("cuBLAS handle", Kind.WORKSPACE, 0, address, managed=False, because="workspace")


class _Stretch:
    """One phase between two closings; ``live`` is brought from the first to the second."""

    def __init__(self, recording: Recording, start: Mark, end: Mark, live: dict[int, _Live], n_layers: int) -> None:
        self.recording, self.start, self.end, self.live, self.n_layers = recording, start, end, live, n_layers
        done = [tick for tick in recording.head_done if start.tick <= tick <= end.tick]
        # Memory ended before the head's backward was over: all of the phase belongs to it.
        is_cut_off = recording.was_cut_off and end.tick == recording.marks[-1].tick and end.place.phase == "backward"
        self.head_done = done[0] if done else end.tick if is_cut_off else start.tick

    def run(self, events: list[dict[str, Any]]) -> TracedPhase:
        """Play the events up to the high water, look, and play the rest."""
        high = _high_water(self.live, events)
        self._play(events, 0, high)
        high_water = self._seen(high, _freed(events[:high]), _freed(events[high:]))
        self._play(events, high, len(events))
        closing = self._left_over(len(events))
        return TracedPhase(place=self.end.place, n_events=len(events), high_water=high_water, closing=closing)

    def _play(self, events: list[dict[str, Any]], first: int, last: int) -> None:
        for index in range(first, last):
            entry, tick = events[index], self.start.tick + index
            self._mark_layer_inputs(tick)
            if entry["action"] == "alloc":
                size, phase = entry["size"], self.end.place.phase
                self.live[entry["addr"]] = _Live(size, round_to_grain(size), entry, phase, tick < self.head_done)
            else:
                self.live.pop(entry["addr"], None)
        self._mark_layer_inputs(self.start.tick + last)

    def _mark_layer_inputs(self, tick: int) -> None:
        """What is passed to a layer is what checkpointing keeps."""
        for address in self.recording.layer_inputs.get(tick, ()):
            found = self.live.get(address)
            if found is not None:
                self.live[address] = found._replace(is_layer_input=True)

    def _seen(self, offset: int, freed: set[int], to_be_freed: set[int]) -> Seen:
        """What is alive at the high water and has no name at both ends of the phase."""
        rest = []
        for address, one in self.live.items():
            before, after = self.start.named.get(address), self.end.named.get(address)
            if before is None or after is None or before.owner != after.owner:
                came = before if address not in freed else None
                stays = after if address not in to_be_freed else None
                rest.append(self._named(address, one, stays or came))
        return Seen(n_bytes=_total(self.live), offset=offset, holdings=fold(rest, self.n_layers))

    def _left_over(self, n_events: int) -> Seen:
        """What is alive at the closing and has no name."""
        rest = [self._named(address, one, None) for address, one in self.live.items() if address not in self.end.named]
        return Seen(n_bytes=_total(self.live), offset=n_events, holdings=fold(rest, self.n_layers))

    def _named(self, address: int, one: _Live, name: Named | None) -> tuple[Named, int]:
        """An allocation under a name or its label, with the bytes of its block."""
        if name is not None:
            return name._replace(n_bytes=one.n_bytes), one.block_bytes
        owner, kind, because = one.label_in(self.end.place.phase)
        return Named(owner, kind, one.n_bytes, address, managed=False, because=because), one.block_bytes


def _high_water(live: dict[int, _Live], events: list[dict[str, Any]]) -> int:
    """After how many events the most is allocated; the first of equals."""
    current = most = sum(one.block_bytes for one in live.values())
    blocks = {address: one.block_bytes for address, one in live.items()}
    at = 0
    for index, entry in enumerate(events, start=1):
        if entry["action"] == "alloc":
            blocks[entry["addr"]] = round_to_grain(entry["size"])
            current += blocks[entry["addr"]]
        else:
            current -= blocks.pop(entry["addr"], 0)
        if current > most:
            most, at = current, index
    return at


def _freed(events: list[dict[str, Any]]) -> set[int]:
    return {entry["addr"] for entry in events if entry["action"] != "alloc"}


def _total(live: dict[int, _Live]) -> int:
    return sum(one.n_bytes for one in live.values())
