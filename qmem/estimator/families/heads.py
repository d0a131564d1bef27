"""What a family does to the logits after the head."""

from qmem.estimator.activations import tanh
from qmem.estimator.operations import scale
from qmem.estimator.paper import Module, PaperTensor


class ScaledHead(Module):
    """``logits * c`` or ``logits / c``: the logits and the scaled ones at once, then these."""

    def __init__(self, head: Module) -> None:
        super().__init__(head.paper, head.role)
        self.head = head

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """The head, then the product."""
        logits = self.head(hidden_states)
        logits = scale(logits)
        return logits  # noqa: RET504 - the local is the only reference to what was scaled


class SoftCappedHead(Module):
    """``cap * tanh(logits / cap)``: tanh saves its result, in the dtype of the logits."""

    def __init__(self, head: Module) -> None:
        super().__init__(head.paper, head.role)
        self.head = head

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """The head, then the cap, step by step."""
        logits = self.head(hidden_states)
        logits = scale(logits)
        logits = tanh(logits)
        logits = scale(logits)
        return logits  # noqa: RET504 - the local is the only reference to what was scaled
