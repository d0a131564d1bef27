"""Rotary positions on paper tensors: the tables of cosines and sines, and the rotation of queries and keys.

Source: transformers 5.23.0, ``RotaryEmbedding.forward`` and ``apply_rotary_pos_emb`` of ``models/*/modeling_*.py``.
"""

from qmem.estimator.operations import add, mul, negate, to, use_cublas
from qmem.estimator.paper import Paper, PaperTensor, empty
from qmem.estimator.slicing import cat_last, half

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
