"""Learned biases of relative positions on paper tensors, and how they become a mask of attention.

Source: transformers 5.23.0 ``models/t5/modeling_t5.py`` (``T5Attention.compute_bias``),
``integrations/sdpa_attention.py`` (``create_position_bias_mask``).
"""

from qmem.estimator.paper import Module, Paper, PaperTensor, empty
from qmem.estimator.tape import record


def relative_position_bias(table: Module, q: int, k: int, *, causal: bool) -> PaperTensor:
    """``compute_bias``: ``[1, heads, q, k]``, looked up by bucket, so heads lie together in memory (``columns``)."""
    paper = table.paper
    paper.rule = "relative positions"
    arange = empty(paper, (q, 1), "int64")
    context_position = empty(paper, (q, 1), "int64")
    del arange
    memory_position = empty(paper, (1, k), "int64")
    relative_position = empty(paper, (q, k), "int64")
    bucket = _forward_bucket(relative_position) if causal else _both_ways_bucket(relative_position)
    values = table(bucket)
    del context_position, memory_position, relative_position, bucket
    return _permuted(values)


def _permuted(values: PaperTensor) -> PaperTensor:
    """``values.permute([2, 0, 1]).unsqueeze(0)``: a view; the embedding's backward copies its gradient back."""
    q, k, n_heads = values_shape = values.shape

    def backward(g: PaperTensor, _: list[bool]) -> tuple[PaperTensor]:
        return (empty(g.paper, values_shape, g.dtype),)

    node = record(values.paper, "permute", [values], backward)
    return PaperTensor((1, n_heads, q, k), values.dtype, values.storage, node, base=values, columns=True)


def _both_ways_bucket(relative_position: PaperTensor) -> PaperTensor:
    """``_relative_position_bucket``: half of the buckets for what stands behind."""
    paper, shape = relative_position.paper, relative_position.shape
    ahead = empty(paper, shape, "bool")
    number = empty(paper, shape, "int64")
    del ahead
    offset = empty(paper, shape, "int64")
    del number
    relative_buckets = empty(paper, shape, "int64")
    del offset
    distance = empty(paper, shape, "int64")
    within = _bucket_of(distance)
    del within, distance
    return relative_buckets


def _forward_bucket(relative_position: PaperTensor) -> PaperTensor:
    """``_relative_position_bucket`` where nothing ahead is seen."""
    paper, shape = relative_position.paper, relative_position.shape
    zeros = empty(paper, shape, "int64")
    least = empty(paper, shape, "int64")
    del zeros
    distance = empty(paper, shape, "int64")
    del least
    within = _bucket_of(distance)
    relative_buckets = empty(paper, shape, "int64")
    del within, distance
    return relative_buckets


def _bucket_of(distance: PaperTensor) -> PaperTensor:
    """The bucket of a distance: its own if it is small, by its logarithm if it is large."""
    paper, shape = distance.paper, distance.shape
    is_small = empty(paper, shape, "bool")
    large = _large_bucket(paper, shape)
    chosen = empty(paper, shape, "int64")
    del is_small, large
    return chosen


def _large_bucket(paper: Paper, shape: tuple[int, ...]) -> PaperTensor:
    """``max_exact + (log(d / a) / b * c).to(long)``, and at most the last bucket."""
    value = empty(paper, shape, "fp32")
    for _ in range(4):
        value = empty(paper, shape, "fp32")
    number = empty(paper, shape, "int64")
    del value
    large = empty(paper, shape, "int64")
    del number
    last = empty(paper, shape, "int64")
    limited = empty(paper, shape, "int64")
    del last, large
    return limited


def zero_position_bias(q: PaperTensor, k: PaperTensor, *, trainable: bool) -> PaperTensor:
    """Zeros where attention has no table; under checkpointing they require a gradient."""
    paper = q.paper
    paper.rule = "position bias"
    bias = empty(paper, (1, q.shape[1], q.shape[2], k.shape[2]), q.dtype)
    bias.trainable = trainable
    return bias


def position_bias_mask(position_bias: PaperTensor, *, causal: bool) -> PaperTensor:
    """``create_position_bias_mask``: the bias, or with what is ahead hidden, copied where heads lie together."""
    mask = _hidden_ahead(position_bias) if causal else position_bias
    if not position_bias.columns:
        return mask
    node = record(mask.paper, "contiguous", [mask], lambda g, _: (g,))
    return empty(mask.paper, mask.shape, mask.dtype, node)


def _hidden_ahead(position_bias: PaperTensor) -> PaperTensor:
    """``where(causal_mask, position_bias, min)``: saves the mask; backward makes a gradient of the bias's size."""
    paper = position_bias.paper
    _, _, q, k = shape = position_bias.shape
    paper.rule = "attention mask"
    rows = empty(paper, (q, 1), "int64")
    columns = empty(paper, (1, k), "int64")
    visible = empty(paper, (1, 1, q, k), "bool")
    del rows, columns
    paper.rule = "position bias"

    def backward(g: PaperTensor, _: list[bool], _visible: PaperTensor) -> tuple[PaperTensor]:
        return (empty(g.paper, shape, g.dtype),)

    node = record(paper, "where", [position_bias], backward, (visible,))
    smallest = empty(paper, (), position_bias.dtype)
    mask = empty(paper, shape, position_bias.dtype, node, columns=True)
    del smallest
    return mask
