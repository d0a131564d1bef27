"""Linear biases of positions (ALiBi) on paper tensors, and the mask of attention that they become.

Source: transformers 5.23.0 ``models/falcon/modeling_falcon.py`` (``build_alibi_tensor``, ``FalconModel.forward``).
"""

from qmem.estimator.operations import to
from qmem.estimator.paper import Paper, PaperTensor, empty


def alibi_biases(attention_mask: PaperTensor, n_heads: int, dtype: str) -> PaperTensor:
    """``build_alibi_tensor``: a bias for each head and key, ``[b, heads, 1, s]``; what it is made of goes last."""
    paper, (b, s) = attention_mask.paper, attention_mask.shape
    paper.rule = "slopes"
    n_of_two = 1 << (n_heads.bit_length() - 1)
    base = empty(paper, (), "fp32")
    powers = empty(paper, (n_of_two,), "int32")
    slopes = empty(paper, (n_of_two,), "fp32")
    extra = []
    if n_heads > n_of_two:
        extra = [empty(paper, (), "fp32"), empty(paper, (n_heads - n_of_two,), "int32")]
        extra_slopes = empty(paper, (n_heads - n_of_two,), "fp32")
        slopes = empty(paper, (n_heads,), "fp32")
        del extra_slopes
    arange = _positions(paper, b, s)
    rounded = empty(paper, (n_heads, 1), "bf16")
    alibi = empty(paper, (b, n_heads, 1, s), "bf16")
    del rounded
    alibi = to(alibi, dtype)
    del base, powers, slopes, extra, arange
    return alibi


def _positions(paper: Paper, b: int, s: int) -> PaperTensor:
    """``(mask.cumsum(-1) - 1) * mask``."""
    paper.rule = "positions"
    counted = empty(paper, (b, s), "int64")
    shifted = empty(paper, (b, s), "int64")
    del counted
    return empty(paper, shifted.shape, "int64")


def alibi_mask(mask: PaperTensor, alibi: PaperTensor) -> PaperTensor:
    """The biases at every query, with the smallest number where the mask hides: ``[b, heads, s, s]``."""
    paper, dtype = mask.paper, alibi.dtype
    b, n_heads, _, s = alibi.shape
    paper.rule = "attention bias"
    if mask.dtype == "bool":
        mask = _additive(mask, dtype)
    scaled = empty(paper, alibi.shape, dtype)
    hidden = empty(paper, mask.shape, "bool")
    result = empty(paper, (b, n_heads, s, s), dtype)
    del scaled, hidden
    return result


def _additive(mask: PaperTensor, dtype: str) -> PaperTensor:
    """``where(mask, 0, min)``."""
    zero_and_least = [empty(mask.paper, (), dtype) for _ in range(2)]
    additive = empty(mask.paper, mask.shape, dtype)
    del zero_and_least
    return additive
