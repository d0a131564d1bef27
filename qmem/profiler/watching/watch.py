"""One watched training: hooks, meter and log put together, from the first forward to the ledger.

It owns the order of things.  Where a ledger goes, and how a program comes to be watched, is for those who call.
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from qmem.errors import UnavailableError, UnsupportedError
from qmem.job import Job
from qmem.ledger import Ended, Kind, Ledger
from qmem.profiler.device import DeviceCounters
from qmem.profiler.meter import Meter
from qmem.profiler.names import Named, model_tensors, optimizer_tensors
from qmem.profiler.protocol import Closed, Event, Noted, Request, Shortage, Started, Traced, Workspaces
from qmem.profiler.supervisor import Told
from qmem.profiler.tracing import Tracer
from qmem.profiler.watching.account import VERSIONED, Watched, watched_ledger
from qmem.profiler.watching.counting import CountingMeter, nested_stats
from qmem.profiler.watching.guarding import Guarding
from qmem.profiler.watching.kept import name_kept
from qmem.profiler.watching.log import Log
from qmem.profiler.watching.outline import devices_of, outline, unwrapped
from qmem.profiler.watching.phases import BEFORE, Phases
from qmem.profiler.watching.ranks import rank_of_process

CLEAN_STEPS = 3
"""Steps that are measured before one is traced, where nobody says how many."""

_watches: list["Watch"] = []
_observed: list[int] = []


class Watch:
    """Watches from ``begin`` to ``finish``.

    Args:
        run: what is watched, in words.
        detail: name tensors at every closing, and trace one step to find the owners of transient memory.
        clean_steps: how many steps are measured before the traced one.
        on_out_of_memory: is given the ledger as it is where torch finds no more memory.
        begins: is called before each step, with its number.
        is_of_program: the program is watched from outside, and what it watches itself is part of that.

    Attributes:
        model: what is watched; absent before it was found.
        retries_before: how often torch had given segments back and tried again before what is watched began.
    """

    def __init__(
        self,
        run: str,
        *,
        detail: bool,
        clean_steps: int = CLEAN_STEPS,
        on_out_of_memory: Callable[[Ledger], None],
        begins: Callable[[int], None] | None = None,
        is_of_program: bool = False,
    ) -> None:
        self.run, self.detail, self.clean_steps = run, detail, clean_steps
        self.is_of_program = is_of_program
        self.on_out_of_memory, self.begins = on_out_of_memory, begins
        self.model: Any = None
        self.retries_before = 0
        self.log, self.device = Log(), DeviceCounters()
        self.meter: Meter = (Meter if detail else CountingMeter)(self._take, self.device, 0)
        self.meter.place = BEFORE
        self.meter.sources.append(self._named)
        self.tracer = Tracer(self.meter)
        self.phases = Phases(self.meter, self._step_begins)
        self.phases.ends = self._step_ends
        self._peaks: dict[str, int] = {}
        self.guarding = Guarding()
        self._cut_off: Closed | None = None
        self._simulated = False

    def attach(self) -> None:
        """Find the device, have the guard watch where it is simulated, and see where memory ends.

        Raises:
            UnavailableError: this machine has no GPU that CUDA can use.
            UnsupportedError: torch allocates by another allocator than its own.
        """
        import torch  # noqa: PLC0415

        if not torch.cuda.is_available():
            raise UnavailableError("this machine has no GPU that CUDA can use", hint="see qmem doctor")
        if torch.cuda.get_allocator_backend() != "native":
            raise UnsupportedError("only torch's native allocator keeps the counters", hint="leave backend out")
        has_context = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self.guard()
        self.device.attach()
        if has_context:
            self.device.context_bytes = None  # what there was before is not known any more
        observe_end_of_memory()

    def guard(self) -> None:
        """Have the readback guard watch where the card is simulated; from the start of the program, it knows most."""
        from qmem.phantom import is_loaded  # noqa: PLC0415

        if self not in _watches:
            _watches.append(self)
            self._simulated = is_loaded()
            if self._simulated:
                self.guarding.start()
                self.phases.starts_backward = self.guarding.declare_losses

    def begin(self, model: Any) -> None:
        """Follow a model from here on; its first forward in training ends what came before."""
        self.find(model)
        self.phases.follow(model)

    def find(self, model: Any) -> None:
        """The model is known: its tensors have names now."""
        from qmem.profiler.running import count_parameters  # noqa: PLC0415

        self.model = unwrapped(model)
        known = outline(self.model)
        self.meter.n_layers = len(known.layers)
        self._take(self._started())
        self._take(count_parameters(self.model))
        if isinstance(self.meter, CountingMeter):
            self.meter.looks = True
        if self.detail and known.head is not None:
            self.phases.follow_head(known.head)
        self.guarding.follow(self.model)

    def finish(self, ended: Ended = "complete", message: str = "") -> Ledger:
        """End the watch and account for it.

        Raises:
            UnavailableError: nothing was measured.
        """
        if ended == "out of memory" and self._cut_off is None:
            self.meter.cut_off()
        elif self._cut_off is None or ended == "complete":
            self._close_last()
        self.meter.was_cut_off = ended == "out of memory"
        if ended == "complete":
            self._cut_off = None
        if self.detail:
            self._tell_owners()
        self.stop()
        ledger = self.account(ended, message)
        self._release()
        return ledger

    def _release(self) -> None:
        """Hold nothing of the training any more: whoever keeps the result may want its memory back."""
        self.model = None
        self.meter.sources.clear()
        self.phases.optimizers.clear()
        self.phases.only.clear()

    def stop(self) -> None:
        """Take every hook away."""
        self.phases.stop()
        self.guarding.stop()
        if self in _watches:
            _watches.remove(self)

    def metrics(self) -> dict[str, int]:
        """Bytes at most since this was last asked, over all phases and of each."""
        stats = nested_stats()
        self._note_peaks(
            self.phases.phase, *(stats[f"{name}_bytes"]["all"]["peak"] for name in ("allocated", "reserved"))
        )
        peaks, self._peaks = self._peaks, {}
        return peaks

    def see_end_of_memory(self, shortage: Shortage) -> None:
        """torch finds no more memory: account for what holds it, before anything is let go."""
        self.meter.cut_off(shortage)
        message = f"torch asked for {shortage.asked:,} B, and the card had {shortage.free:,} B left"
        self.on_out_of_memory(self.account("out of memory", message))
        self.meter.was_cut_off = False

    def _take(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._note_peaks(event.place.phase, event.allocated.peak, event.reserved.peak)
            if event.unfinished:
                self._cut_off = event
                return
        self.log.take(event)

    def _note_peaks(self, phase: str, allocated: int, reserved: int) -> None:
        word = phase.replace(" ", "_")
        peaks = {
            "peak_allocated_bytes": allocated,
            "peak_reserved_bytes": reserved,
            f"{word}_peak_allocated_bytes": allocated,
        }
        for name, n_bytes in peaks.items():
            self._peaks[f"qmem/{name}"] = max(n_bytes, self._peaks.get(f"qmem/{name}", 0))

    def _named(self) -> list[Named]:
        """The tensors of the model and its optimizers; where only counters are read, those that live on."""
        if self.model is None:
            return []
        named = [*model_tensors(self.model)]
        for optimizer in self.phases.optimizers:
            named += optimizer_tensors(self.model, optimizer)
        if self.detail or self.meter.was_cut_off:
            return named
        return [one for one in named if one.kind is not Kind.GRADIENT]

    def _step_begins(self, step: int) -> None:
        if isinstance(self.meter, CountingMeter):
            self.meter.looks = self.meter.looks or step == 2  # noqa: PLR2004 - the first has left the optimizer's state
        elif step == self.clean_steps + 1:
            self.meter.close()
            self.tracer.start()
            known = outline(self.model)
            self.tracer.follow(self.model, known.layers, known.head)
        elif step == self.clean_steps + 2:
            self.meter.close()
            self._stop_trace()
        if self.begins is not None:
            self.begins(step)

    def _step_ends(self, step: int) -> None:
        """The batch of the traced step is made before its forward."""
        if self.detail and step == self.clean_steps:
            self.tracer.listen()

    def _stop_trace(self) -> None:
        """Take the traced step home; steps after it are measured as those before."""
        if self.meter.closes is not None or self.tracer.recording is None:
            self.tracer.stop()

    def _tell_owners(self) -> None:
        """What can be said only at the end: which blocks are workspaces, and what was alive when."""
        from qmem.profiler.running import clear_workspaces  # noqa: PLC0415

        self._stop_trace()
        workspaces = clear_workspaces()
        self.log.take(Workspaces(addresses=tuple(workspaces)))
        if self.tracer.recording is not None:
            name_kept(self.tracer.recording)
            self.log.take(Traced(phases=self.tracer.phases(workspaces)))

    def _close_last(self) -> None:
        if isinstance(self.meter, CountingMeter):
            self.meter.looks = True
        self.meter.close()

    def account(self, ended: Ended, message: str = "") -> Ledger:
        """The ledger of what was seen until now.

        Raises:
            UnavailableError: nothing was measured.
        """
        events = [*self.log.events, *([self._cut_off] if self._cut_off else []), *self.guarding.told()]
        if not any(isinstance(event, Closed) for event in events):
            raise UnavailableError("nothing was measured: no forward of the watched model was seen")
        name = type(self.model).__name__ if self.model is not None else "no model"
        phantom = "simulated" if self._simulated else None
        request = Request(job=Job(model=name), phantom=phantom, steps=self.clean_steps)
        watched = Watched(request, self.run, self._notes(), self.detail, self.retries_before)
        return watched_ledger(watched, Told(events, ended, message))

    def _notes(self) -> tuple[str, ...]:
        unplaced = tuple(self.phases.unplaced)
        if self.phases.step == 0:
            unplaced = ("no step of training was seen: its phases are unknown, and all of it is counted in the load",)
        return (*unplaced, *self._elsewhere())

    def _elsewhere(self) -> Iterator[str]:
        import torch  # noqa: PLC0415

        here = torch.cuda.current_device()
        others = sorted(devices_of(self.model) - {here}) if self.model is not None else []
        if others:
            names = ", ".join(f"cuda:{one}" for one in others)
            yield f"the model lies on {names} too: only cuda:{here} was measured"

    def _started(self) -> Started:
        import torch  # noqa: PLC0415

        from qmem.profiler.passport import installed_versions, passport  # noqa: PLC0415

        settings = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
        entries = passport(simulated=self._simulated, alloc_conf=settings)
        if self.device.context_bytes is not None:
            entries["context bytes"] = str(self.device.context_bytes)
        if (rank := rank_of_process()) is not None:
            entries["rank"] = str(rank)
        entries |= installed_versions(name for name in VERSIONED if name in sys.modules)
        for note in self.device.nvml.notes:
            self._take(Noted(sentence=note))
        return Started(pid=os.getpid(), device=torch.cuda.get_device_name(), passport=entries)


def running() -> Watch | None:
    """The watch of this process, if one is there: torch's peaks are reset at closings, so there is room for one."""
    return _watches[-1] if _watches else None


def observe_end_of_memory() -> None:
    """Have the running watch see where torch's allocator finds no more memory; torch forgets no observer."""
    import torch  # noqa: PLC0415

    if _observed:
        return
    _observed.append(os.getpid())
    bindings: Any = torch._C  # noqa: SLF001

    def see(_device: int, asked: int, _total: int, free: int) -> None:
        for watch in _watches[-1:]:
            watch.see_end_of_memory(Shortage(asked, free))

    bindings._cuda_attach_out_of_memory_observer(see)  # noqa: SLF001
