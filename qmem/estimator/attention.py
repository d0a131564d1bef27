"""Attention on paper tensors: scaled dot product attention (flash and memory-efficient kernels) and eager.

Which kernel torch would choose stands in ``sdpa_choice.py``.  Sources: torch 2.14.1
``aten/src/ATen/native/transformers/cuda`` (``attention.cu``, ``attention_backward.cu``, the flash and the cutlass
kernels' interfaces); transformers 5.23.0 ``integrations/sdpa_attention.py`` and each model's ``eager_attention_forward``.
"""

from qmem.estimator.operations import (
    add,
    batched_matmul,
    cast_for_matmul,
    contiguous,
    like,
    scale,
    swap_heads,
    to,
)
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.tape import Gradients, record, save_output


def repeat_kv(x: PaperTensor, n_heads: int) -> PaperTensor:
    """Keys or values at all heads: a copy where heads are shared; backward of the expansion is a sum."""
    b, kv_heads, s, d = x_shape = x.shape
    if kv_heads == n_heads:
        return x
    node = record(x.paper, "repeat_kv", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return empty(x.paper, (b, n_heads, s, d), x.dtype, node)


def sdpa(q: PaperTensor, k: PaperTensor, v: PaperTensor, mask: PaperTensor | None) -> PaperTensor:
    """``F.scaled_dot_product_attention`` as transformers calls it: ``[b, heads, s, d]`` in and out.

    Without a mask heads stay grouped (``enable_gqa``) and 16-bit inputs run the flash kernel.  A mask of any
    sort forces keys and values to all heads and the memory-efficient kernel; so does fp32.
    Autocast casts v, k, q in that order.
    """
    if mask is not None:
        k = repeat_kv(k, q.shape[1])
        v = repeat_kv(v, q.shape[1])
    v = cast_for_matmul(v)
    k = cast_for_matmul(k)
    q = cast_for_matmul(q)
    if mask is not None:
        # where(bool mask, 0, -inf) in the queries' dtype
        q.paper.rule = "attention bias"
        return _efficient(q, k, v, empty(q.paper, mask.shape, q.dtype))
    return _efficient(q, k, v, None) if q.dtype == "fp32" else _flash(q, k, v)


def _flash(q: PaperTensor, k: PaperTensor, v: PaperTensor) -> PaperTensor:
    """The flash kernel: saves q, k, v, its output, the log-sum-exp and two random-state tensors.

    Backward: dq, dk, dv, the softmax's row sums and an fp32 accumulator of dq at rows rounded to 128 and head
    size rounded to 32; with grouped heads also dk and dv at all heads.
    """
    b, h, s, d = q_shape = q.shape
    rows, head_size = -(-s // 128) * 128, -(-d // 32) * 32
    grouped = k.shape[1] != h

    def backward(g: PaperTensor, _: list[bool], *saved: PaperTensor) -> Gradients:
        dq, dk, dv = like(saved[0]), like(saved[1]), like(saved[2])
        row_sums = empty(g.paper, (b, h, rows), "fp32")
        accumulator = empty(g.paper, (b, rows, h, head_size), "fp32")
        expanded = [empty(g.paper, q_shape, g.dtype) for _ in "kv"] if grouped else []
        del row_sums, accumulator, expanded
        return dq, dk, dv

    node = record(q.paper, "flash attention", [q, k, v], backward, (q, k, v))
    out = empty(q.paper, q_shape, q.dtype, node, swapped=True)
    log_sum_exp = empty(q.paper, (b, h, s), "fp32")
    n_splits = _flash_splits(b * h, s, d, q.paper.gpu.sm_count)
    partial = [empty(q.paper, (n_splits, b, h, s, *size), "fp32") for size in ((), (head_size,)) if n_splits > 1]
    seed = empty(q.paper, (2,), "int64")
    offset = empty(q.paper, (1,), "int64")
    save_output(node, out, log_sum_exp, seed, offset)
    del partial
    return out


def _flash_splits(batch_heads: int, s: int, d: int, sm_count: int) -> int:
    """Into how many parts the flash kernel splits keys where queries alone leave the GPU idle.

    Each part keeps a partial output and log-sum-exp in fp32 until the kernel returns.  Source: the flash-attention
    copy in torch 2.14.1, ``flash_attn/flash_api.cpp`` (``set_params_splitkv``, ``num_splits_heuristic``).
    """
    query_blocks = batch_heads * -(-s // 64)
    key_blocks = -(-s // (256 if d <= 64 else 128 if d <= 128 else 64))
    workers = sm_count * 2
    if query_blocks >= 0.8 * workers:
        return 1
    eligible = [n for n in range(1, min(128, workers, key_blocks) + 1) if _ends_evenly(key_blocks, n)]
    efficiency = {n: _wave_efficiency(query_blocks * n, workers) for n in eligible}
    best = max(efficiency.values())
    return next(n for n in eligible if efficiency[n] >= 0.85 * best)


def _ends_evenly(blocks: int, parts: int) -> bool:
    """Whether ``parts`` parts differ from one part fewer."""
    return parts == 1 or -(-blocks // parts) != -(-blocks // (parts - 1))


def _wave_efficiency(tasks: int, workers: int) -> float:
    return (tasks / workers) / -(-tasks // workers)


def _efficient(q: PaperTensor, k: PaperTensor, v: PaperTensor, bias: PaperTensor | None) -> PaperTensor:
    """The memory-efficient (cutlass) kernel: saves q, k, v, bias, output, log-sum-exp (rows rounded to 32), state.

    Backward: dq, dk, dv; with grouped heads dk and dv at all heads; delta = (grad * out).sum(-1), whose product
    is materialized for fp32 while 16-bit kernels compute it themselves; and a workspace of dq tiles of
    ``rows × d`` with a 16-byte lock header each.
    """
    b, h, s, d = q_shape = q.shape
    grouped = k.shape[1] != h

    def backward(g: PaperTensor, _: list[bool], *saved: PaperTensor) -> Gradients:
        paper = g.paper
        dq, dk, dv = like(saved[0]), like(saved[1]), like(saved[2])
        rows = 64 if g.dtype == "fp32" or d <= 64 else 128
        expanded = [empty(paper, q_shape, g.dtype) for _ in "kv"] if grouped else []
        if g.dtype == "fp32":
            product = empty(paper, q_shape, "fp32")
            summed = empty(paper, (b, h, s), "fp32")
            delta = empty(paper, (b, h, s), "fp32")
            del product, summed
        else:
            delta = empty(paper, (b, h, s), "fp32")
        tiles = empty(paper, (b * h * -(-s // rows) * (rows * d + 4),), "fp32")
        del expanded, delta, tiles
        return dq, dk, dv, None

    node = record(q.paper, "memory-efficient attention", [q, k, v, bias], backward, (q, k, v, bias))
    seed = empty(q.paper, (), "int64")
    offset = empty(q.paper, (), "int64")
    out = empty(q.paper, q_shape, q.dtype, node, swapped=True)
    log_sum_exp = empty(q.paper, (b, h, -(-s // 32) * 32), "fp32")
    save_output(node, out, log_sum_exp, seed, offset)
    return out


def eager(q: PaperTensor, k: PaperTensor, v: PaperTensor, mask: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
    """``eager_attention_forward``: the full ``[b, heads, s, s]`` weights, in fp32 through the softmax.

    Returns the output as ``[b, s, heads, d]`` and the weights, which live as long as the caller keeps them.
    """
    n_heads = q.shape[1]
    key_states = repeat_kv(k, n_heads)
    value_states = repeat_kv(v, n_heads)
    attn_weights = scale(batched_matmul(q, key_states, transpose_b=True))
    attn_weights = add(attn_weights, mask)
    attn_weights = to(_softmax_fp32(attn_weights), q.dtype)
    attn_output = batched_matmul(attn_weights, value_states, transpose_b=False)
    attn_output = contiguous(swap_heads(attn_output))
    return attn_output, attn_weights


def _softmax_fp32(x: PaperTensor) -> PaperTensor:
    """``softmax(x, dtype=torch.float32)``: saves its result; backward holds ``grad * output`` besides its own."""
    x = to(x, "fp32")

    def backward(_g: PaperTensor, _: list[bool], result: PaperTensor) -> Gradients:
        grad = like(result)
        product = like(result)
        del product
        return (grad,)

    node = record(x.paper, "softmax", [x], backward)
    result = like(x, node)
    save_output(node, result)
    return result
