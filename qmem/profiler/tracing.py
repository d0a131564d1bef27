"""A step, or a whole run, with the allocator's history: who holds the memory that has no name of its own.

The history records each allocation with the stack of Python and C++ that asked for it; hooks on the modules tell it
which module is running.  Neither allocates on the device; that the traced step peaks where the clean ones did is
checked where the ledger is made.
"""

import threading
from collections.abc import Iterator
from typing import Any

from qmem.profiler.head import HeadPlace
from qmem.profiler.labels import module_role
from qmem.profiler.meter import Counts, Meter, active_blocks, counts_of, memory_stats
from qmem.profiler.names import Named
from qmem.profiler.protocol import Block, Place, TracedPhase
from qmem.profiler.replay import Mark, Recording, by_address, replay

MAX_EVENTS = 2_000_000
"""More than any step has: one of a 70B model has about 20,000."""


class Tracer:
    """Records from ``start`` to ``stop``; what runs in a model's modules is known once it follows the model."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.recording: Recording | None = None
        self._hooks: list[Any] = []
        self._heard_from: int | None = None

    def listen(self) -> None:
        """Begin the history before the step does: what is made for the step is known then."""
        self._heard_from = counts_of(memory_stats()).tick
        _record()

    def start(self) -> None:
        """Begin to record; the meter hands its closings here from now on."""
        before = Mark(Place(0, 1, "rest"), counts_of(memory_stats()).tick, by_address(self.meter.named()))
        self.recording = Recording(before, active_blocks())
        self.meter.closes = self._close
        if self._heard_from is None:
            _record()
        else:
            self.recording.n_earlier = before.tick - self._heard_from

    def follow(self, model: Any, layers: list[Any], head: HeadPlace | None) -> None:
        """Have the model's modules, its decoder layers and its head tell what runs."""
        self._hooks = [
            *_module_hooks(model),
            *(layer.register_forward_pre_hook(self._note_layer_input) for layer in layers),
            *([head.watch(self._watch_head_input)] if head else []),
        ]

    def stop(self) -> None:
        """End the recording, if one began, and take the history of the current device."""
        import torch  # noqa: PLC0415

        traces = torch.cuda.memory._snapshot()["device_traces"] if self.recording else ()  # noqa: SLF001
        torch.cuda.memory._record_memory_history(enabled=None)  # noqa: SLF001
        if self.recording is None:
            return
        self.recording.history = traces[torch.cuda.current_device()]
        self.recording.was_cut_off = self.meter.was_cut_off
        self.meter.closes = None
        for hook in self._hooks:
            hook.remove()

    def phases(self, workspaces: dict[int, Block]) -> tuple[TracedPhase, ...]:
        """What was alive when; ``workspaces`` are known by then."""
        assert self.recording is not None, "it was started"
        return replay(self.recording, workspaces, self.meter.n_layers)

    def _close(self, place: Place, counts: Counts, named: list[Named]) -> None:
        assert self.recording is not None, "it was started"
        self.recording.marks.append(Mark(place, counts.tick, by_address(named)))

    def _note_layer_input(self, _: Any, arguments: tuple[Any, ...]) -> None:
        """The input of a checkpointed layer is what checkpointing keeps; a recomputation says nothing new."""
        assert self.recording is not None, "it was started"
        place = self.meter.place
        if arguments and place is not None and place.phase == "forward":
            address = arguments[0].untyped_storage().data_ptr()
            self.recording.layer_inputs.setdefault(counts_of(memory_stats()).tick, []).append(address)

    def _watch_head_input(self, hidden_states: Any) -> None:
        """When the gradient of the head's input is there, the backward of loss and head is over."""
        if hidden_states.requires_grad:
            hidden_states.register_hook(self._note_head_done)

    def _note_head_done(self, _: Any) -> None:
        assert self.recording is not None, "it was started"
        self.recording.head_done.append(counts_of(memory_stats()).tick)


def _record() -> None:
    import torch  # noqa: PLC0415

    torch.cuda.memory._record_memory_history(context="alloc", stacks="all", max_entries=MAX_EVENTS)  # noqa: SLF001


def _module_hooks(model: Any) -> Iterator[Any]:
    """Hooks on all modules that tell the history which is running; without that support (before 2.10) none.

    In autograd's thread a layer is recomputed and then differentiated: until the next one begins, what is allocated
    outside any module belongs to it.
    """
    import torch  # noqa: PLC0415
    from torch.nn.modules.module import (  # noqa: PLC0415
        register_module_forward_hook,
        register_module_forward_pre_hook,
    )

    tell = getattr(torch.cuda.memory, "_set_memory_metadata", None)
    if tell is None:
        return
    roles = {id(module): module_role(name) for name, module in model.named_modules() if name}
    main, local = threading.get_ident(), threading.local()

    def begin(module: Any, _: Any) -> None:
        around = getattr(local, "running", [])
        # peft wraps an expert parameter anew at each forward: that module has no name, its caller has.
        local.running = [*around, roles.get(id(module), around[-1] if around else "")]
        tell(local.running[-1])

    def end(*_: Any) -> None:
        around = getattr(local, "running", [])
        if not around:
            return  # this module was called before the hooks were there
        *local.running, last = around
        between = "" if threading.get_ident() == main else last
        tell(local.running[-1] if local.running else between)

    yield register_module_forward_pre_hook(begin)
    yield register_module_forward_hook(end, always_call=True)
