"""Rotary positions on paper tensors: the tables of cosines and sines, and the rotation of queries and keys.

Source: transformers 5.23.0, ``RotaryEmbedding.forward`` and ``apply_rotary_pos_emb`` of ``models/*/modeling_*.py``;
torch 2.14.1 ``derivatives.yaml`` (``view_as_real``, ``mul``).
"""

from qmem.estimator.operations import add, like, mul, negate, to, use_cublas
from qmem.estimator.paper import Paper, PaperTensor, empty
from qmem.estimator.slicing import cat_last, half
from qmem.estimator.tape import Gradients, record

Tables = tuple[PaperTensor, PaperTensor]
"""Cosines and sines of the rotary embedding."""


def rotary_tables(paper: Paper, s: int, head_dim: int, dtype: str) -> Tables:
    """``LlamaRotaryEmbedding.forward``: cos and sin of ``[1, s, head_dim]``, made in fp32."""
    paper.rule = "rotary embedding"
    shape = (1, 1, s, head_dim)
    positions = empty(paper, (1, s), "fp32")
    freqs = empty(paper, (1, s, head_dim // 2), "fp32")  # noqa: F841 - the local lives to the end of the frame
    if paper.older.rotates_by_cublas:
        use_cublas(paper)
        return _older_tables(paper, positions, shape, dtype)
    del positions
    emb = empty(paper, shape, "fp32")  # noqa: F841 - so does this
    cos = empty(paper, shape, "fp32")
    cos = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    return to(cos, dtype), to(sin, dtype)


def _older_tables(paper: Paper, positions: PaperTensor, shape: tuple[int, ...], dtype: str) -> Tables:  # noqa: ARG001
    """Transformers 4.48.1 scales both tables after both are made; the positions are a local to the end."""
    emb = empty(paper, shape, "fp32")  # noqa: F841 - the local lives to the end of the frame
    cos = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    cos = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    return to(cos, dtype), to(sin, dtype)


def apply_rotary(q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> Tables:
    """``apply_rotary_pos_emb``: ``x * cos + rotate_half(x) * sin`` for queries, then keys."""
    q_embed = rotated(q, cos, sin)
    k_embed = rotated(k, cos, sin)
    return q_embed, k_embed


def rotated(x: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> PaperTensor:
    """``x * cos + rotate_half(x) * sin``."""
    return add(mul(x, cos), mul(rotate_half(x), sin))


def rotate_half(x: PaperTensor) -> PaperTensor:
    """``torch.cat((-x2, x1), -1)`` of the halves of ``x``.

    Where pairs stand side by side (``x[..., ::2]``, ``x[..., 1::2]``, ``stack``, ``flatten``) the memory is the same.
    """
    x1 = half(x)
    x2 = half(x)
    return cat_last(negate(x2), x1)


def complex_table(paper: Paper, s: int, width: int) -> PaperTensor:
    """``polar(1, freqs) * scaling``: a complex number, two fp32 ones, for each pair of a head that is rotated."""
    paper.rule = "rotary embedding"
    positions = empty(paper, (1, s), "fp32")
    freqs = empty(paper, (1, s, width // 2), "fp32")
    del positions
    ones = empty(paper, (1, s, width // 2), "fp32")
    freqs_cis = empty(paper, (1, 1, s, width), "fp32")
    del ones
    freqs_cis = empty(paper, (1, 1, s, width), "fp32")
    del freqs
    return freqs_cis


def times_complex(x: PaperTensor, freqs_cis: PaperTensor) -> PaperTensor:
    """``x * freqs_cis``: saves the latter; backward writes its conjugate out first."""
    x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool], freqs_cis: PaperTensor) -> Gradients:
        conjugate = empty(g.paper, freqs_cis.shape, "fp32")
        product = empty(g.paper, x_shape, "fp32")
        del conjugate
        return (product,)

    return like(x, record(x.paper, "mul complex", [x], backward, (freqs_cis,)))


def as_real(x: PaperTensor) -> PaperTensor:
    """``torch.view_as_real``: a view; backward needs a contiguous gradient."""

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (empty(g.paper, g.shape, g.dtype) if g.swapped else g,)

    node = record(x.paper, "view_as_real", [x], backward)
    return PaperTensor(x.shape, x.dtype, x.storage, node, base=x, swapped=x.swapped)
