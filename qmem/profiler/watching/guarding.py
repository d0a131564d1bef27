"""The phantom's readback guard around a watched run, and what a watched run may declare to it.

The roots of a backward are losses: a healthy run's are numbers, and which ones changes no shape.  So are the loss that
a model returns and the norm that clipping returns.  They are what loops read back to log.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from qmem.profiler.protocol import Guarded

LOSS = "the loss that a model returns or a backward begins from: it is logged, and looked at whether it is a number"
NORM = "the gradient norm: it is logged, and looked at whether it is a number"

RUNNING_LOSS = ("transformers/trainer.py", "the running loss", ("_maybe_log_save_evaluate", "_finalize_training"))
"""Where the Trainer reads what it made before its callbacks are called (transformers 5.23.0): to log it."""


class Guarding:
    """Watches what is read back from a simulated card; on a real one nothing is to be guarded."""

    def __init__(self) -> None:
        self.verdict: Any = None
        self._leave = ExitStack()

    def start(self) -> None:
        """Watch from here on, unless somebody does already."""
        from qmem.phantom import guard  # noqa: PLC0415

        trainers = [guard.Consumer(RUNNING_LOSS[0], function, RUNNING_LOSS[1]) for function in RUNNING_LOSS[2]]
        self.verdict = guard.current() or self._leave.enter_context(guard.watching((*guard.LOGGED, *trainers)))
        self._leave.callback(_on_clipping(self._declare_norm))

    def follow(self, model: Any) -> None:
        """Assume what cannot be computed: where tokens go among experts, and which features are outliers."""
        import sys  # noqa: PLC0415

        from qmem.profiler.outliers import assume_no_outliers  # noqa: PLC0415
        from qmem.profiler.routing import assume_balanced_routing  # noqa: PLC0415

        if self.verdict is not None:
            self._leave.callback(model.register_forward_hook(self._declare_returned).remove)
            assume_balanced_routing(model, self.verdict)
            if "bitsandbytes" in sys.modules:
                assume_no_outliers(self.verdict)

    def declare_losses(self, roots: Any) -> None:
        """The tensors that a backward begins from, as far as they are numbers."""
        for root in roots if isinstance(roots, (list, tuple)) else [roots]:
            self._declare(root, LOSS)

    def told(self) -> Iterator[Guarded]:
        """What the guard says of the run until now."""
        if self.verdict is not None:
            yield guarded(self.verdict)

    def stop(self) -> None:
        """Watch no more; the verdict stands."""
        self._leave.close()

    def _declare_returned(self, _: Any, __: Any, output: Any) -> None:
        loss = getattr(output, "loss", None)
        if loss is not None:
            self._declare(loss, LOSS)

    def _declare_norm(self, norm: Any) -> None:
        self._declare(norm, NORM)

    def _declare(self, tensor: Any, why: str) -> None:
        if self.verdict is not None and tensor.numel() == 1 and self.verdict.can_follow(tensor):
            self.verdict.declare(tensor, why)


def guarded(verdict: Any) -> Guarded:
    """The state, each assumption that a read rests on, and each kind of read that the guard could not answer truly."""
    assumed = (f"assumed: {read.why}" for read in verdict.reads if read.state == "assumed")
    tainting = (
        f"tainted: {read.n_bytes} B read at {read.line} after {read.kernel}: {read.why}" for read in verdict.tainting
    )
    return Guarded(
        state=verdict.state, assumptions=tuple(dict.fromkeys(assumed)), sentences=tuple(dict.fromkeys(tainting))
    )


def _on_clipping(see: Callable[[Any], None]) -> Callable[[], None]:
    """Have ``see`` called with the norm that clipping returns; returns what removes that."""
    import torch  # noqa: PLC0415

    utils: Any = torch.nn.utils
    clip = utils.clip_grad_norm_

    def clip_and_tell(*arguments: Any, **keywords: Any) -> Any:
        norm = clip(*arguments, **keywords)
        see(norm)
        return norm

    def remove() -> None:
        if utils.clip_grad_norm_ is clip_and_tell:
            utils.clip_grad_norm_ = clip

    utils.clip_grad_norm_ = clip_and_tell
    return remove
