"""Embeddings on paper tensors.

Source: torch 2.14.1 ``nn/modules/sparse.py``, ``aten/src/ATen/native/Embedding.cpp``.
"""

from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.tape import Gradients, record
from qmem.ledger import Kind


class Embedding(Module):
    """``torch.nn.Embedding``; ``wants_grad`` is the hook of ``enable_input_require_grads``."""

    def __init__(self, paper: Paper, weight: PaperTensor, *, wants_grad: bool) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "embed_tokens"))
        self.weight, self.wants_grad = weight, wants_grad

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """Rows of the weight; backward makes a dense gradient of the weight's size."""
        weight_shape = self.weight.shape

        def backward(g: PaperTensor, _: list[bool], _ids: PaperTensor) -> Gradients:
            return (empty(g.paper, weight_shape, g.dtype),)

        node = record(self.paper, "embedding", [self.weight], backward, (input_ids,))
        hidden = empty(self.paper, (*input_ids.shape, weight_shape[1]), self.weight.dtype, node)
        hidden.trainable = self.wants_grad and node is None
        return hidden
