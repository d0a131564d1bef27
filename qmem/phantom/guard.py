"""The readback guard: whether what a program read back from the phantom was true.

On a device whose kernels do not run, a value that is read back is whatever the memory held; a program that decides by
it may take another path than on a real card, and its figures would be wrong without a word.  So while the guard
watches:

* Small tensors whose values follow from the host (ids, masks, labels, positions and what is computed from them) are
  computed for real beside the device, by a ``TorchFunctionMode`` and by one replaced operator, ``nonzero``, which every
  boolean index comes down to.  Their true bytes lie in the phantom's memory, so that any question is answered by them.
* The runtime reports every copy to the host.  One of known bytes is clean.  So is a read that its caller has declared
  not to change shapes (``known_read``, ``Verdict.declare``).  One that rests on a named assumption makes the result
  assumed.  Any other makes it tainted, with the last kernel and the Python line that asked.

Nothing hangs on what a torch version calls its kernels.  What it does not see: a kernel launched outside torch's own
functions on an address that was taken without ``Tensor.data_ptr``, and managed memory that is read without a copy.
A ``TorchDispatchMode`` would see more, but while one is active torch's autograd adds gradients out of place, which
changes the very memory that is measured (ATen/TensorSubclassLikeUtils.h).
"""

import ctypes
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from qmem.errors import UnavailableError
from qmem.phantom.calls import HANDS_OUT_ADDRESS, Call, overlap, tensors_in, without_modes
from qmem.phantom.knowledge import Known, fills_its_storage, is_small, on_host, place, version
from qmem.phantom.loader import loaded_library
from qmem.phantom.verdict import LOGGED, Consumer, Read, Standing, State, Verdict, combined

__all__ = ["LOGGED", "Consumer", "Read", "State", "Verdict", "known_read", "watching"]

READ_HOOK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
"""``ReadHook`` of ``csrc/core.c``."""

COUNT = 8
"""Bytes of the number of elements, which a real device is asked for."""

LONGEST_RELEASE = 1.0
"""Seconds that autograd's threads get to let go of a finished backward; they need microseconds."""

_watchers: list["_Watcher"] = []
_autograd: Any = torch.autograd  # the four of them are without annotations
_engine = "_engine_run_backward"
_library_of: Any = torch.library.Library
_modes_now: Any = _get_current_function_mode_stack


@contextmanager
def watching(logged: tuple[Consumer, ...] = LOGGED) -> Iterator[Verdict]:
    """Watch what this thread, and autograd for it, reads back from the phantom.

    Tensors made on the device before are unknown to the guard, so it should watch from the start.

    Args:
        logged: functions whose reads of a single number are for a log.

    Raises:
        UnavailableError: this process has no phantom, or the guard watches already.
    """
    library = loaded_library()
    if _watchers:
        raise UnavailableError("the readback guard watches already", hint="leave its first `with` block before")
    verdict = Verdict(logged)
    watcher = _Watcher(verdict)
    report = READ_HOOK(watcher.on_read)
    _watchers.append(watcher)
    library.qmem_phantom_on_read(report)
    try:
        with _replaced_nonzero(watcher), _following_backward(verdict), _active(verdict):
            yield verdict
    finally:
        library.qmem_phantom_on_read(None)
        _watchers.remove(watcher)


def current() -> Verdict | None:
    """The verdict of the guard that watches this process, if one does."""
    return _watchers[0].verdict if _watchers else None


@contextmanager
def known_read(why: str) -> Iterator[None]:
    """Reads in this block do not change shapes, says its caller; ``why`` names them.  Without a guard: nothing."""
    declared = _watchers[0].verdict.declared if _watchers else []
    declared.append(why)
    try:
        yield
    finally:
        declared.pop()


class _Watcher(TorchFunctionMode):
    """Follows known values through torch's functions, and judges reads."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__()
        self.verdict = verdict
        self.knowledge = verdict.knowledge

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One call of one of torch's functions; properties pass."""
        name: str = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        inputs = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_cuda]
        call = Call(func, name, args, kwargs, inputs)
        if call.is_about_large_tensors():
            return call.run()
        known = self._all_known(inputs)
        if known and name in HANDS_OUT_ADDRESS:
            self.knowledge.forget(inputs[0])
        elif known and call.brings_to_host():
            return self._answer(call, known)
        elif known and call.is_shaped_by_values():
            return self._shape_by_values(call, inputs[0].device, known)
        return self._follow(call)

    def _all_known(self, tensors: list[torch.Tensor]) -> list[Known]:
        """What is known of the tensors; empty if anything is unknown about one of them."""
        known = []
        for tensor in tensors:
            if not is_small(tensor) or not (one := self.knowledge.of(tensor)):
                return []
            known.append(one)
        return known

    def _answer(self, call: Call, known: list[Known]) -> Any:
        """A question about known values: the device is not asked."""
        self.verdict.record(f"none ({call.name})", sum(one.n_bytes for one in known), combined(known))
        answer = call.run_on_host()
        return answer.clone() if isinstance(answer, torch.Tensor) else answer

    def _shape_by_values(self, call: Call, device: torch.device, known: list[Known]) -> Any:
        """A result whose shape depends on known values: computed on the host, and sent to the device."""
        standing = combined(known)
        self.verdict.record(call.name, COUNT, standing)
        results = call.run_on_host()
        moved = [self._new(value, device, standing) for value in tensors_in(results)]
        return tuple(moved) if isinstance(results, (tuple, list)) else moved[0]

    def nonzero(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place of the CUDA operator, to which boolean indexing comes down, in C++ and in backward too."""
        with without_modes(), torch.no_grad():
            known = self._all_known([tensor])
            self.verdict.record("nonzero", COUNT, combined(known) if known else None)
            if not known:
                return torch.empty(0, tensor.dim(), dtype=torch.int64, device=tensor.device)
            return self._new(on_host(tensor).nonzero(), tensor.device, combined(known))

    def _new(self, values: torch.Tensor, device: torch.device, standing: Standing) -> torch.Tensor:
        """A tensor of the phantom that holds ``values``."""
        made = torch.empty(values.shape, dtype=values.dtype, device=device)
        self._write(made, values, standing)
        return made

    def _write(self, tensor: torch.Tensor, values: torch.Tensor, standing: Standing) -> None:
        on_host(tensor).copy_(values)
        self.knowledge.learn(tensor, standing.why, assumed=standing.assumed)

    def _follow(self, call: Call) -> Any:
        """Run the call on the phantom; where all it depends on is known, compute its small results for real."""
        overwritten = call.overwritten()
        sources = call.sources(overwritten)
        known = self._all_known(sources)
        follows = len(known) == len(sources) and call.follows_from_values()
        versions = [(tensor, version(tensor)) for tensor in sources if is_small(tensor) and self.knowledge.of(tensor)]
        result = call.run()
        written = overwritten + [tensor for tensor, before in versions if version(tensor) != before]
        fresh = self._fresh(result, sources + written)
        for tensor in written:
            self.knowledge.forget(tensor)
        if follows and (fresh or written) and not overlap(written, sources):
            self._compute(call, written, fresh, result, combined(known))
        return result

    def _fresh(self, result: Any, others: list[torch.Tensor]) -> list[torch.Tensor]:
        """The small tensors of a result that are not views of something else."""
        small = [tensor for tensor in tensors_in(result) if is_small(tensor) and fills_its_storage(tensor)]
        if not small:
            return []
        places = {place(tensor) for tensor in others if is_small(tensor)}
        return [tensor for tensor in small if place(tensor) not in places]

    def _compute(
        self,
        call: Call,
        written: list[torch.Tensor],
        fresh: list[torch.Tensor],
        result: Any,
        standing: Standing,
    ) -> None:
        """Repeat the call on the host: what it writes in place is then there, what it returns is written there."""
        try:
            on_host_too = tensors_in(call.run_on_host())
        except Exception:  # noqa: BLE001 - what the host cannot do must not stop the program
            return  # the results stay unknown
        for tensor in written:
            self.knowledge.learn(tensor, standing.why, assumed=standing.assumed)
        for tensor, values in zip(tensors_in(result), on_host_too, strict=False):
            same = tensor.shape == values.shape and tensor.dtype == values.dtype
            if same and any(tensor is one for one in fresh):
                self._write(tensor.detach(), values, standing)

    def on_read(self, kernel: bytes, address: int, n_bytes: int) -> int:
        """The runtime is about to copy device memory to the host; 1 lets it copy all, because the bytes are true."""
        known = self.knowledge.at(address, n_bytes)
        self.verdict.record(kernel.decode(), n_bytes, combined([known]) if known else None)
        if known is None and self.verdict.zeros:
            ctypes.memset(address, 0, n_bytes)
        return int(known is not None or bool(self.verdict.zeros))


@contextmanager
def _replaced_nonzero(watcher: _Watcher) -> Iterator[None]:
    library = _library_of("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an operator is replaced is the purpose
        library.impl("nonzero", watcher.nonzero, "CUDA")
    try:
        yield
    finally:
        library._destroy()  # noqa: SLF001 - there is no public way to take it back


@contextmanager
def _following_backward(verdict: Verdict) -> Iterator[None]:
    """Autograd's threads work under the modes that are active where the engine starts; in a method of torch none is.

    So the guard is made active again right there, and sees what checkpoints recompute.
    """
    start_engine = getattr(_autograd, _engine)

    def start_watched(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(mode, _Watcher) for mode in _modes_now()):
            return start_engine(*args, **kwargs)
        with _active(verdict):
            return start_engine(*args, **kwargs)

    setattr(_autograd, _engine, start_watched)
    try:
        yield
    finally:
        setattr(_autograd, _engine, start_engine)


@contextmanager
def _active(verdict: Verdict) -> Iterator[None]:
    """The guard is among the modes of this thread; afterwards no thread of autograd holds it any more.

    Such a thread drops the modes of a finished backward in its own time, and needs the interpreter for it.  Where the
    interpreter ends first, the thread is ended inside a destructor, and that aborts the process ("terminate called
    without an active exception").
    """
    watcher = _Watcher(verdict)
    alive = weakref.ref(watcher)
    try:
        with watcher:
            yield
    finally:
        del watcher
        end = time.monotonic() + LONGEST_RELEASE
        while alive() is not None and time.monotonic() < end:
            time.sleep(0)
