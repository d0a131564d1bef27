"""The loss scaling of fp16 training on paper: a few scalars, but they are there.

Source: torch 2.14.1 ``torch/amp/grad_scaler.py`` (``GradScaler``), as accelerate 1.15.0 calls it for transformers'
Trainer.  That a step is skipped because a gradient overflowed changes no memory.
"""

from qmem.estimator.operations import like
from qmem.estimator.paper import Paper, PaperTensor, Role, empty
from qmem.estimator.tape import record
from qmem.ledger import Kind

_ROLE = Role(Kind.OPTIMIZER_TEMPORARY, "loss scaling")


class GradScaler:
    """What a scaler keeps: its scale and growth tracker from the first loss on, and whether a gradient overflowed."""

    def __init__(self, paper: Paper) -> None:
        self.paper = paper
        self.kept: list[PaperTensor] = []
        self.found_inf: PaperTensor | None = None

    def scaled(self, loss: PaperTensor) -> PaperTensor:
        """``scale(loss)``: a new scalar, and one in its backward."""
        outer, self.paper.role = self.paper.role, _ROLE
        if not self.kept:
            self.paper.rule = "scale and growth tracker"
            self.kept = [empty(self.paper, (), "fp32") for _ in range(2)]
        self.paper.role = outer
        return like(loss, record(self.paper, "scale loss", [loss], lambda g, _: (like(g),)))

    def unscale(self) -> None:
        """``unscale_``: the inverse of the scale by way of fp64; gradients are multiplied in place."""
        paper = self.paper
        outer, paper.role, paper.rule = paper.role, _ROLE, "inverse scale"
        double = empty(paper, (2,), "fp32")  # one fp64
        reciprocal = empty(paper, (2,), "fp32")
        del double
        inverse = empty(paper, (), "fp32")
        del reciprocal
        found = empty(paper, (), "fp32")
        self.found_inf = empty(paper, (), "fp32")
        copied = empty(paper, (), "fp32")
        del copied, inverse, found
        paper.role = outer

    def update(self) -> None:
        """``update()``, after the optimizer's step."""
        self.found_inf = None
