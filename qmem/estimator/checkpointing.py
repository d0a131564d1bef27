"""Activation checkpointing on paper tensors: forward keeps the inputs of a layer, backward runs the layer again.

Two programs do it: torch's default, by hooks on what is saved, and the older reentrant one, by a function of its
own that calls backward within backward.  Source: torch 2.14.1 ``torch/utils/checkpoint.py``.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qmem.estimator.paper import Paper, PaperTensor, empty
from qmem.estimator.tape import Gradients, record, run_engine_from_all, slots
from qmem.ledger import Kind

Checkpoint = Callable[..., Any]
"""How a layer is run: ``checkpoint(layer, hidden_states, *others)``."""


def checkpointing(*, reentrant: bool) -> Checkpoint:
    """The program of ``gradient_checkpointing_kwargs={"use_reentrant": reentrant}``."""
    return reentrant_checkpoint if reentrant else checkpoint


class _Stop(Exception):
    """Everything that backward needs has been recomputed."""


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """``torch.utils.checkpoint.checkpoint(use_reentrant=False)`` with early stop.

    Forward: what would be saved becomes an empty holder, so only the inputs live on.  The first holder that
    backward opens runs ``function`` again, keeps what it saves, and stops at the last tensor that was saved.
    Source: torch 2.14.1 ``torch/utils/checkpoint.py`` (``_checkpoint_hook``, ``_recomputation_hook``).
    """
    frame = _CheckpointFrame(function, inputs)
    paper = frame.paper
    paper.saved_tensor_hooks.append(frame.pack)
    try:
        return function(*inputs)
    finally:
        paper.saved_tensor_hooks.pop()


class _Holder:
    """Stands for a saved tensor until it is opened.  It dies with the operation that would have saved the tensor."""

    __slots__ = ("__weakref__", "frame", "index")

    def __init__(self, frame: "_CheckpointFrame", index: int) -> None:
        self.frame = frame
        self.index = index

    def __call__(self) -> PaperTensor:
        """The tensor, recomputed."""
        return self.frame.open(self.index)


class _CheckpointFrame:
    """The inputs of a checkpointed call, and what fills its holders again."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self.function = function
        self.inputs = inputs
        self.paper: Paper = inputs[0].paper
        self.holders: list[weakref.ref[_Holder]] = []
        self.refilled: list[PaperTensor | None] | None = None
        self.autocast_dtype = self.paper.autocast_dtype
        self.paper.relabel(inputs[0], Kind.CHECKPOINT)

    def pack(self, tensor: PaperTensor) -> _Holder:  # noqa: ARG002 - the holder stays empty
        """Save nothing."""
        holder = _Holder(self, len(self.holders))
        self.holders.append(weakref.ref(holder))
        return holder

    def open(self, index: int) -> PaperTensor:
        """What the holder stands for; the first that is opened has all recomputed."""
        if self.refilled is None:
            self._recompute()
        assert self.refilled is not None
        tensor, self.refilled[index] = self.refilled[index], None
        assert tensor is not None, "a holder is opened once"
        return tensor

    def _recompute(self) -> None:
        paper = self.paper
        refilled: list[PaperTensor | None] = []
        self.refilled = refilled

        def keep(tensor: PaperTensor) -> PaperTensor:
            wanted = self.holders[len(refilled)]() is not None
            refilled.append(tensor.detached() if wanted else None)
            if len(refilled) == len(self.holders):
                raise _Stop
            return tensor.detached()

        with _recomputing(paper, self.autocast_dtype):
            paper.saved_tensor_hooks.append(keep)
            try:
                self.function(*self.inputs)
            except _Stop:
                pass
            finally:
                paper.saved_tensor_hooks.pop()


@contextmanager
def _recomputing(paper: Paper, autocast_dtype: str | None) -> Iterator[None]:
    """A forward within backward: with gradients, and under autocast as it was, with a cache of its own."""
    outer = (paper.role, paper.grad_enabled, paper.autocast_dtype, paper.autocast_cache)
    paper.grad_enabled, paper.autocast_dtype, paper.autocast_cache = True, autocast_dtype, {}
    try:
        yield
    finally:
        paper.role, paper.grad_enabled, paper.autocast_dtype, paper.autocast_cache = outer


def reentrant_checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """``checkpoint(use_reentrant=True)``: ``CheckpointFunction``, whose results share one node.

    Forward runs without gradients, so nothing is saved but ``inputs[0]``, the only argument that is not bound by
    name.  Backward runs the whole of ``function`` again, to its last operation, on a detached input, and then
    backward over that.  Until it returns it holds the incoming gradients and the results of the second run; zeros
    stand for the gradient of a result that has none.
    """
    hidden_states, *others = inputs
    paper: Paper = hidden_states.paper
    autocast_dtype = paper.autocast_dtype

    def backward(grads: dict[int, PaperTensor], needs: list[bool], saved: PaperTensor) -> Gradients:
        incoming = [grads.get(index) or empty(paper, *shape) for index, shape in enumerate(shapes)]
        detached = saved.detached()
        detached.trainable = needs[0]
        with _recomputing(paper, autocast_dtype):
            again = _results(function(detached, *others))
        role = paper.role
        run_engine_from_all(again, incoming)
        paper.role = role
        return (detached.grad,)

    node = record(paper, "checkpoint", [hidden_states], backward, (hidden_states,))
    paper.relabel(hidden_states, Kind.CHECKPOINT)
    outer, paper.grad_enabled = paper.grad_enabled, False
    ran = function(*inputs)
    paper.grad_enabled = outer
    results = _results(ran)
    shapes = [(output.shape, output.dtype) for output in results]
    tracked = [
        PaperTensor(output.shape, output.dtype, output.storage, slot, swapped=output.swapped)
        for output, slot in zip(results, slots(node, len(results)), strict=True)
    ]
    if not isinstance(ran, tuple):
        return tracked[0]
    return (*tracked, *(None for one in ran if one is None))


def _results(ran: Any) -> list[PaperTensor]:
    return [one for one in (ran if isinstance(ran, tuple) else (ran,)) if one is not None]
