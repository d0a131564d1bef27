"""Where the phases of somebody else's training loop begin, told by hooks.

A forward begins where the watched model is called in training, the backward where autograd is started, the optimizer
step where an optimizer's is; that lasts until the next forward.  It knows hooks and order, and nothing of bytes.
"""

import threading
from collections.abc import Callable
from typing import Any

from qmem.ledger import Phase
from qmem.profiler.head import HeadPlace
from qmem.profiler.meter import Meter
from qmem.profiler.protocol import Place

BEFORE = Place(0, 1, "load")
"""Everything before the first forward of training: loading and preparing are not told apart from outside."""


class Phases:
    """Follows one model and its optimizers.

    Attributes:
        begins: is called before each step, with its number; ``ends`` before its optimizer step.
        starts_backward: is called with what a backward begins from.
        optimizers: those whose step was seen.
        only: the optimizers that count; all, where it is empty.
        unplaced: sentences about what could not be placed.
    """

    def __init__(self, meter: Meter, begins: Callable[[int], None]) -> None:
        self.meter, self.begins = meter, begins
        self.step, self.micro_step, self.phase = BEFORE
        self.optimizers: list[Any] = []
        self.only: list[Any] = []
        self.unplaced: dict[str, None] = {}
        self.ends: Callable[[int], None] = _knows_nothing
        self.starts_backward: Callable[[Any], None] = _knows_nothing
        self._thread = threading.get_ident()
        self._undo: list[Callable[[], None]] = []

    def follow(self, model: Any) -> None:
        """Hooks on a model, on autograd, and on the optimizers to come."""
        self._undo.append(model.register_forward_pre_hook(self.see_forward).remove)
        self.follow_steps()

    def follow_steps(self) -> None:
        """Hooks on autograd and on all optimizers; other threads than this one only compute what it asks for."""
        self._thread = threading.get_ident()
        from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: PLC0415

        self._undo += [register_optimizer_step_pre_hook(self._see_step).remove, _on_backward(self._see_backward)]

    def follow_head(self, head: HeadPlace) -> None:
        """The loss begins where the head does."""
        self._undo.append(head.watch(lambda _: self._see_loss()).remove)

    def stop(self) -> None:
        """Take all hooks away."""
        while self._undo:
            self._undo.pop()()

    def see_forward(self, module: Any, _: Any) -> None:
        """The model is called: a micro-step of training, or an evaluation between two steps."""
        import torch  # noqa: PLC0415

        if threading.get_ident() != self._thread:
            return  # a checkpoint recomputes
        if not (module.training and torch.is_grad_enabled()):
            if self.phase in ("load", "optimizer step"):
                self._enter("evaluation")
        elif self.phase == "backward":
            self.micro_step += 1
            self._enter("forward")
        elif self.phase not in ("forward", "loss"):
            self.begins(self.step + 1)
            self.step, self.micro_step = self.step + 1, 1
            self._enter("forward")

    def _see_loss(self) -> None:
        if self.phase == "forward" and threading.get_ident() == self._thread:
            self._enter("loss")

    def _see_backward(self, roots: Any) -> None:
        if threading.get_ident() != self._thread:
            return  # a reentrant checkpoint
        self.starts_backward(roots)
        if self.phase in ("forward", "loss"):
            self._enter("backward")
        elif self.phase != "backward":
            self._cannot_place("a backward began where no forward of the watched model had been seen", self.phase)

    def _see_step(self, optimizer: Any, *_: Any) -> None:
        if self.only and not any(optimizer is one for one in self.only):
            self._cannot_place("the step of an optimizer began that was not named to be watched", self.phase)
            return
        if not any(optimizer is known for known in self.optimizers):
            self.optimizers.append(optimizer)
        if self.phase in ("forward", "loss"):
            self._cannot_place("an optimizer's step began where no backward had been seen", "forward")
        elif self.phase in ("load", "evaluation"):
            self._cannot_place(
                "an optimizer's step began where no forward of the watched model had been seen", self.phase
            )
            return
        if self.phase != "optimizer step":
            self.ends(self.step)
        self._enter("optimizer step")

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        is_of_micro_step = phase in ("forward", "loss", "backward")
        self.meter.enter(phase, self.step, self.micro_step if is_of_micro_step else 1)

    def _cannot_place(self, what: str, phase: str) -> None:
        self.unplaced[f"{what}: its phase is unknown, and what it held is counted in the {phase}"] = None


def _knows_nothing(_: Any) -> None:
    """On a real GPU a loss is what it is."""


def _on_backward(see: Callable[[Any], None]) -> Callable[[], None]:
    """Have ``see`` called with what autograd is started from; returns what removes that."""
    import torch  # noqa: PLC0415

    autograd: Any = torch.autograd
    run_backward = autograd.backward
    watched = [see]

    def backward(tensors: Any, *arguments: Any, **keywords: Any) -> Any:
        for one in watched:
            one(tensors)
        return run_backward(tensors, *arguments, **keywords)

    def remove() -> None:
        watched.clear()
        if autograd.backward is backward:
            autograd.backward = run_backward

    autograd.backward = backward
    return remove
