"""The gated delta rule of linear attention on paper tensors, as transformers writes it out in torch.

The recurrent state of each head is carried from chunk to chunk; within a chunk all is matrix products.  This is the
program where the package flash-linear-attention is not installed.  Source: transformers 5.23.0
``models/qwen3_5/modeling_qwen3_5.py`` (``torch_chunk_gated_delta_rule``, ``l2norm``); torch 2.14.1
``derivatives.yaml``, ``aten/src/ATen/native/cuda/ScanKernels.cpp``.
"""

from typing import NamedTuple

from qmem.estimator.chunks import (
    alias,
    chosen,
    chunked,
    first_tokens,
    joined_chunks,
    padded,
    products,
    put_chunk,
    solve_triangular,
    transposed,
)
from qmem.estimator.middle_chunks import FIRST, Scanned, n_in_the_middle, passed_over
from qmem.estimator.operations import add, add_scalar, like, mul, rsqrt, scale, view
from qmem.estimator.paper import Paper, PaperTensor, empty
from qmem.estimator.slicing import part
from qmem.estimator.tape import Gradients, record, save_output

CHUNK = 64
"""Tokens of a chunk (``chunk_size``)."""


class _Within(NamedTuple):
    """What is known of every chunk before the state is carried through them.

    All of it lives until the rule returns, as locals do there; the first to go stands last.
    """

    chunk_decay: PaperTensor
    k_cumdecay: PaperTensor
    new_values: PaperTensor
    decayed_k_beta: PaperTensor
    intra_chunk_attn: PaperTensor
    ut_system: PaperTensor
    pairwise_decay: PaperTensor
    cum_decay: PaperTensor
    strictly_upper_mask: PaperTensor
    k_beta: PaperTensor
    v_beta: PaperTensor
    decay: PaperTensor
    beta: PaperTensor
    value: PaperTensor
    key: PaperTensor
    query: PaperTensor

    @property
    def scanned(self) -> Scanned:
        """What is read chunk by chunk."""
        return Scanned(self.new_values, self.k_cumdecay, self.query, self.intra_chunk_attn, self.key, self.chunk_decay)


def chunk_gated_delta_rule(
    query: PaperTensor, key: PaperTensor, value: PaperTensor, g: PaperTensor, beta: PaperTensor
) -> PaperTensor:
    """``torch_chunk_gated_delta_rule`` from no state and to none: ``[b, s, heads, d]`` of all, ``[b, s, heads]``."""
    initial_dtype, s = query.dtype, query.shape[1]
    within, last_recurrent_state, core_attn_out = _within_chunks(query, key, value, g, beta)
    n_passed = n_in_the_middle(within.scanned)
    for index in range(within.key.shape[2] - n_passed):
        if index == FIRST and n_passed:
            last_recurrent_state, core_attn_out = passed_over(
                within.scanned, last_recurrent_state, core_attn_out, n_passed
            )
        v_new = difference(chosen(within.new_values), products(chosen(within.k_cumdecay), last_recurrent_state))
        inter_chunk_attn = products(chosen(within.query), last_recurrent_state)
        core_attn_out = put_chunk(
            core_attn_out, add(inter_chunk_attn, products(chosen(within.intra_chunk_attn), v_new))
        )
        last_recurrent_state = add(
            mul(last_recurrent_state, chosen(within.chunk_decay)), products(transposed(chosen(within.key)), v_new)
        )
    del last_recurrent_state
    core_attn_out = joined_chunks(core_attn_out)
    core_attn_out = first_tokens(core_attn_out, s)
    core_attn_out = _tokens_first(core_attn_out, initial_dtype)
    return core_attn_out  # noqa: RET504 - what it was goes before the other locals do


def _within_chunks(
    query: PaperTensor, key: PaperTensor, value: PaperTensor, decay: PaperTensor, beta: PaperTensor
) -> tuple[_Within, PaperTensor, PaperTensor]:
    """What is known of every chunk, and zeros for the first state and for the result."""
    paper, n_heads = query.paper, value.shape[2]
    query = repeated_heads(query, n_heads)
    key = repeated_heads(key, n_heads)
    query, key, value, beta, decay = [_heads_first(x) for x in (query, key, value, beta, decay)]
    query = l2norm(query)
    key = l2norm(key)
    query = scale(query)
    pad = -query.shape[2] % CHUNK
    query, key, value = (padded(x, pad) for x in (query, key, value))
    beta, decay = (padded(x, pad) for x in (beta, decay))
    v_beta = weighted(value, beta)
    k_beta = weighted(key, beta)
    query, key, k_beta, v_beta = [chunked(x, CHUNK) for x in (query, key, k_beta, v_beta)]
    decay = chunked(decay, CHUNK)
    strictly_upper_mask = _strictly_upper(paper)
    cum_decay = cumsum(decay)
    pairwise_decay = _pairwise(cum_decay)
    pairwise_decay = masked_fill(pairwise_decay, strictly_upper_mask)
    pairwise_decay = exp(pairwise_decay)
    ut_system = mul(products(k_beta, transposed(key)), pairwise_decay)
    intra_chunk_attn = mul(products(query, transposed(key)), pairwise_decay)
    decayed_k_beta = weighted(k_beta, exp(cum_decay))
    new_values = solve_triangular(ut_system, v_beta)
    k_cumdecay = solve_triangular(ut_system, decayed_k_beta)
    b, _, n_chunks, _, d = key.shape
    state = empty(paper, (b, n_heads, d, value.shape[-1]), "fp32")
    core_attn_out = like(new_values)
    query = weighted(query, exp(cum_decay))
    key = weighted(key, exp(difference(part(cum_decay, 1), cum_decay)))
    chunk_decay = view(exp(chosen(cum_decay, 3)), (b, n_heads, n_chunks, 1, 1))
    within = _Within(
        chunk_decay, k_cumdecay, new_values, decayed_k_beta, intra_chunk_attn, ut_system, pairwise_decay, cum_decay,
        strictly_upper_mask, k_beta, v_beta, decay, beta, value, key, query,
    )  # fmt: skip
    return within, state, core_attn_out


def l2norm(x: PaperTensor) -> PaperTensor:
    """``x * rsqrt((x * x).sum(-1) + eps)``."""
    inv_norm = rsqrt(add_scalar(sum_last(mul(x, x))))
    return mul(x, inv_norm)


def repeated_heads(x: PaperTensor, n_heads: int) -> PaperTensor:
    """``x.repeat_interleave(n, dim=2)``: a contiguous copy, unless there are as many heads; backward is a sum."""
    b, s, heads, d = x_shape = x.shape
    if heads == n_heads:
        return x
    node = record(x.paper, "repeat_interleave", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return empty(x.paper, (b, s, n_heads, d), x.dtype, node)


def _heads_first(x: PaperTensor) -> PaperTensor:
    """``x.transpose(1, 2).to(fp32)``, contiguous where it is a cast; what is fp32 stays as it lies."""
    b, s, heads, *width = x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        cast = g if g.dtype == x_dtype else empty(g.paper, shape, x_dtype)
        return (alias(cast, x_shape, swapped=moves and (b > 1 or len(width) > 0)),)

    x_dtype, moves = x.dtype, heads > 1 < s
    shape = (b, heads, s, *width)
    node = record(x.paper, "transpose", [x], backward)
    if x_dtype == "fp32":
        return PaperTensor(shape, x_dtype, x.storage, node, base=x, swapped=moves and not x.columns, columns=x.columns)
    return empty(x.paper, shape, "fp32", node)


def _tokens_first(x: PaperTensor, dtype: str) -> PaperTensor:
    """``x.transpose(1, 2).to(dtype)``, contiguous where it is a cast: ``[b, s, heads, d]``."""
    b, heads, s, d = x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        cast = g if g.dtype == "fp32" else empty(g.paper, shape, "fp32")
        return (alias(cast, x_shape, swapped=moves and not cast.swapped),)

    moves = heads > 1 < s
    shape = (b, s, heads, d)
    node = record(x.paper, "transpose", [x], backward)
    if dtype == "fp32":
        return PaperTensor(shape, dtype, x.storage, node, base=x, swapped=moves)
    return empty(x.paper, shape, dtype, node)


def weighted(x: PaperTensor, weights: PaperTensor) -> PaperTensor:
    """``x * weights.unsqueeze(-1)``: as any product, but gradients lie in memory as the incoming one does."""

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_of_weights = like(g) if needs[1] else None
        grad = like(g) if needs[0] else None
        return grad, grad_of_weights

    weights = view(weights, (*weights.shape, 1))
    saved = (x if weights.requires_grad else None, weights if x.requires_grad else None)
    return like(x, record(x.paper, "mul", [x, weights], backward, saved))


def _strictly_upper(paper: Paper) -> PaperTensor:
    """``torch.ones(chunk, chunk).triu(1)`` of booleans."""
    paper.rule = "mask of a chunk"
    ones = empty(paper, (CHUNK, CHUNK), "bool")
    mask = empty(paper, (CHUNK, CHUNK), "bool")
    del ones
    return mask


def cumsum(x: PaperTensor) -> PaperTensor:
    """``x.cumsum(-1)``, of a contiguous copy if need be.  Backward flips, sums and flips back."""

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        flipped = like(g)
        summed = like(flipped)
        return (like(summed),)

    node = record(x.paper, "cumsum", [x], backward)
    result = empty(x.paper, x.shape, x.dtype, node)
    copied = empty(x.paper, x.shape, x.dtype) if x.swapped else None
    del copied
    return result


def _pairwise(x: PaperTensor) -> PaperTensor:
    """``x.unsqueeze(4) - x.unsqueeze(3)``."""
    rows, columns = view(x, (*x.shape, 1)), view(x, (*x.shape[:-1], 1, x.shape[-1]))
    return difference(rows, columns)


def difference(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``a - b`` of shapes that broadcast: the gradient of ``b`` is the negated one, at full size."""

    def backward(g: PaperTensor, needs: list[bool]) -> Gradients:
        negated = like(g) if needs[1] else None
        return g if needs[0] else None, negated

    shape = tuple(max(extents) for extents in zip(a.shape, b.shape, strict=True))
    return like(a, record(a.paper, "sub", [a, b], backward), "fp32", shape)


def masked_fill(x: PaperTensor, mask: PaperTensor) -> PaperTensor:
    """``x.masked_fill(mask, -inf)``: saves the mask; backward fills the gradient with zeros."""
    return like(x, record(x.paper, "masked_fill", [x], lambda g, _, _mask: (like(g),), (mask,)))


def exp(x: PaperTensor) -> PaperTensor:
    """``x.exp()``: saves its result; backward makes one of its size."""
    node = record(x.paper, "exp", [x], lambda _g, _, result: (like(result),))
    result = like(x, node)
    save_output(node, result)
    return result


def softplus(x: PaperTensor) -> PaperTensor:
    """``F.softplus(x)``: saves ``x``; backward makes one that lies as the incoming gradient does."""
    return like(x, record(x.paper, "softplus", [x], lambda g, _, _saved: (like(g),), (x,)))


def sum_last(x: PaperTensor) -> PaperTensor:
    """``x.sum(-1, keepdim=True)``: one element a row; backward expands without a copy."""
    x_shape = x.shape
    node = record(x.paper, "sum", [x], lambda g, _: (alias(g, x_shape),))
    return empty(x.paper, (*x_shape[:-1], 1), x.dtype, node)
