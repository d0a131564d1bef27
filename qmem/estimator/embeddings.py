"""Embeddings on paper tensors.

Source: torch 2.14.1 ``nn/modules/sparse.py``, ``aten/src/ATen/native/Embedding.cpp``, ``cuda/Embedding.cu``,
``cuda/EmbeddingBackwardKernel.cu``.
"""

from qmem.estimator.cub import exclusive_sum_bytes, sort_pairs_bytes
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.tape import Gradients, record
from qmem.ledger import Kind

UNSORTED = 3072
"""Ids up to which the gradient is added up without sorting them (``embedding_dense_backward_cuda``)."""

ROWS_OF_A_PART = 10
"""``NROWS_PER_THREAD``."""


class Embedding(Module):
    """``torch.nn.Embedding``; ``wants_grad`` is the hook of ``enable_input_require_grads``."""

    def __init__(
        self, paper: Paper, weight: PaperTensor, *, wants_grad: bool = False, role: str = "embed_tokens"
    ) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight, self.wants_grad = weight, wants_grad

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """Rows of the weight; backward makes a dense gradient of the weight's size."""
        weight_shape = self.weight.shape

        def backward(g: PaperTensor, _: list[bool], ids: PaperTensor) -> Gradients:
            if ids.numel <= UNSORTED:
                return (empty(g.paper, weight_shape, g.dtype),)
            return (_sorted_gradient(g, ids.numel, weight_shape),)

        node = record(self.paper, "embedding", [self.weight], backward, (input_ids,))
        hidden = empty(self.paper, (*input_ids.shape, weight_shape[1]), self.weight.dtype, node)
        hidden.trainable = self.wants_grad and node is None
        return hidden


def _sorted_gradient(g: PaperTensor, n: int, weight_shape: tuple[int, ...]) -> PaperTensor:
    """``embedding_backward_cuda_kernel``: ids are sorted, and rows of an id summed in parts of ten, in fp32."""
    paper, (n_words, width) = g.paper, weight_shape
    sorted_ids, order, positions = (empty(paper, (n,), "int64") for _ in range(3))
    scratch = empty(paper, (sort_pairs_bytes(n, n_words.bit_length(), paper.gpu.capability),), "uint8")
    del scratch, positions
    grad = empty(paper, weight_shape, g.dtype)
    starts = empty(paper, (n,), "int64")
    counted_ids = empty(paper, (), "int64")
    positions = empty(paper, (n,), "int64")
    del positions
    n_ids = min(n, n_words)
    parts, first_parts = (empty(paper, (n_ids,), "int64") for _ in range(2))
    scratch = empty(paper, (exclusive_sum_bytes(n_ids),), "uint8")
    del scratch
    counted_parts = empty(paper, (), "int64")
    n_parts = n // ROWS_OF_A_PART + n_ids
    offsets = empty(paper, (n_parts,), "int64")
    sums = empty(paper, (n_parts, width), "fp32")
    del sums, offsets, counted_parts, first_parts, parts, counted_ids, starts, sorted_ids, order
    return grad
