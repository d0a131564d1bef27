"""Attention on paper tensors: scaled dot product attention (flash, cuDNN and memory-efficient kernels) and eager.

Which kernel torch would choose stands in ``sdpa_choice.py``.  Sources: torch 2.14.1
``aten/src/ATen/native/transformers/cuda`` (``attention.cu``, ``attention_backward.cu``, the flash and the cutlass
kernels' interfaces), ``attention.cpp`` (math); transformers 5.23.0 ``integrations/sdpa_attention.py`` and each
model's ``eager_attention_forward``.
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
from qmem.estimator.sdpa_choice import (
    efficient_backward_workspace_bytes,
    flash_padded_head_dim,
    flash_split_bytes,
    sdpa_backend,
)
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

    Without a mask heads stay grouped (``enable_gqa``); a mask of any sort forces keys and values to all heads.
    Autocast casts v, k, q in that order.  The kernel is torch's choice (``sdpa_choice.py``).  The math kernel leaves
    its result contiguous, the others with swapped dimensions.
    """
    if mask is not None:
        k = repeat_kv(k, q.shape[1])
        v = repeat_kv(v, q.shape[1])
    v = cast_for_matmul(v)
    k = cast_for_matmul(k)
    q = cast_for_matmul(q)
    paper, (_, _, s, d) = q.paper, q.shape
    needs_grad = paper.grad_enabled and any(tensor.requires_grad for tensor in (q, k, v))
    backend = sdpa_backend(paper.gpu.capability, q.dtype, d, has_mask=mask is not None, needs_grad=needs_grad, seq=s)
    bias = None if mask is None else _additive(mask, q.dtype)
    if backend == "flash":
        return _flash(q, k, v)
    if backend == "math":
        return _math(q, k, v, bias)
    return _cudnn(q, k, v, bias) if backend == "cudnn" else _efficient(q, k, v, bias)


def _additive(mask: PaperTensor, dtype: str) -> PaperTensor:
    """``where(mask, 0, -inf)`` in the queries' dtype, with its two scalars."""
    paper = mask.paper
    paper.rule = "attention bias"
    scalars = [empty(paper, (), dtype) for _ in range(2)]
    bias = empty(paper, mask.shape, dtype)
    del scalars
    return bias


def _flash(q: PaperTensor, k: PaperTensor, v: PaperTensor) -> PaperTensor:
    """The flash kernel: saves q, k, v, its output, the log-sum-exp and two random-state tensors.

    Forward may split the keys; the parts' outputs and log-sum-exps live until it returns.  Backward: dq, dk, dv,
    the softmax's row sums and an fp32 accumulator of dq at rows rounded to 128 and the padded head size; with
    grouped heads also dk and dv at all heads.
    """
    paper = q.paper
    b, h, s, d = q_shape = q.shape
    rows, head_size = -(-s // 128) * 128, flash_padded_head_dim(d)
    grouped = k.shape[1] != h

    def backward(g: PaperTensor, _: list[bool], *saved: PaperTensor) -> Gradients:
        dq, dk, dv = like(saved[5]), like(saved[6]), like(saved[4])
        row_sums = empty(paper, (b, h, rows), "fp32")
        accumulator = empty(paper, (b, rows, h, head_size), "fp32")
        expanded = [empty(paper, q_shape, g.dtype) for _ in "kv"] if grouped else []
        del expanded, accumulator, row_sums
        return dq, dk, dv

    node = record(paper, "flash attention", [q, k, v], backward, (q, k, v))
    out = empty(paper, q_shape, q.dtype, node, swapped=True)
    log_sum_exp = empty(paper, (b, h, s), "fp32")
    split = flash_split_bytes(paper.gpu.sm_count, b, h, s, d) or ()
    partial = [empty(paper, (n_bytes // 4,), "fp32") for n_bytes in split]
    seed = empty(paper, (2,), "int64")
    unused = empty(paper, (1,), "int64")
    save_output(node, out, log_sum_exp, seed, unused)
    if node is not None:
        # Saved in one order, freed in another.
        q_, k_, v_, out_, log_sum_exp_, seed_, unused_ = node.saved
        node.saved = [unused_, seed_, out_, log_sum_exp_, v_, q_, k_]
    del partial
    return out


def _cudnn(q: PaperTensor, k: PaperTensor, v: PaperTensor, bias: PaperTensor | None) -> PaperTensor:
    """The attention of cuDNN (Hopper, B200): saves q, k, v, the bias, output, log-sum-exp and random state.

    Backward: dq, dk, dv at their own heads and one fp32 workspace of ``b x h x s x (d + 1)``.  What a plan of cuDNN
    asks for on top is not known.
    """
    paper = q.paper
    b, h, s, d = q_shape = q.shape

    def backward(_g: PaperTensor, _: list[bool], *saved: PaperTensor | None) -> Gradients:
        dq, dk, dv = (like(tensor) for tensor in saved[:3] if tensor is not None)
        workspace = empty(paper, (b, h, s, d + 1), "fp32")
        del workspace
        return dq, dk, dv, None

    node = record(paper, "cuDNN attention", [q, k, v, bias], backward, (q, k, v, bias))
    seed = empty(paper, (), "int64")
    offset = empty(paper, (), "int64")
    out = empty(paper, q_shape, q.dtype, node, swapped=True)
    log_sum_exp = empty(paper, (b, h, s, 1), "fp32")
    save_output(node, out, log_sum_exp, seed, offset)
    return out


def _efficient(q: PaperTensor, k: PaperTensor, v: PaperTensor, bias: PaperTensor | None) -> PaperTensor:
    """The memory-efficient (cutlass) kernel: saves q, k, v, bias, output, log-sum-exp (rows rounded to 32), state.

    Backward: dq, dk, dv; with grouped heads dk and dv at all heads; delta = (grad * out).sum(-1), whose product
    is materialized for fp32 while 16-bit kernels compute it themselves; and a workspace of gradient tiles.
    """
    paper = q.paper
    b, h, s, d = q_shape = q.shape
    grouped = k.shape[1] != h

    def backward(g: PaperTensor, _: list[bool], *saved: PaperTensor | None) -> Gradients:
        dq, dk, dv = (like(tensor) for tensor in saved[:3] if tensor is not None)
        expanded = [empty(paper, q_shape, g.dtype) for _ in "kv"] if grouped else []
        if g.dtype == "fp32":
            product = empty(paper, q_shape, "fp32")
            summed = empty(paper, (b, h, s), "fp32")
            delta = empty(paper, (b, h, s), "fp32")
            del product, summed
        else:
            delta = empty(paper, (b, h, s), "fp32")
        workspace = efficient_backward_workspace_bytes(paper.gpu.capability, g.dtype, b, h, s, d)
        tiles = empty(paper, (workspace // 4,), "fp32")
        del expanded, delta, tiles
        return dq, dk, dv, None

    node = record(paper, "memory-efficient attention", [q, k, v, bias], backward, (q, k, v, bias))
    seed = empty(paper, (), "int64")
    offset = empty(paper, (), "int64")
    out = empty(paper, q_shape, q.dtype, node, swapped=True)
    log_sum_exp = empty(paper, (b, h, -(-s // 32) * 32), "fp32")
    save_output(node, out, log_sum_exp, seed, offset)
    return out


def _math(q: PaperTensor, k: PaperTensor, v: PaperTensor, bias: PaperTensor | None) -> PaperTensor:
    """The math kernel (bf16 below sm_80): matrix products in fp32, all weights ``[b, heads, s, s]`` at once.

    Saves what its products and its softmax save.  Weights in the queries' dtype are a second result that nobody
    takes; it is made before the output.
    """
    paper, dtype, n_heads = q.paper, q.dtype, q.shape[1]
    outer, paper.autocast_dtype = paper.autocast_dtype, None
    query_acc, key_acc, value_acc = to(q, "fp32"), to(k, "fp32"), to(v, "fp32")
    scaled_q = scale(query_acc)
    if bias is None:
        bias = _causal_bias(q)
    k_expanded = repeat_kv(key_acc, n_heads)
    v_expanded = repeat_kv(value_acc, n_heads)
    attn = _safe_softmax(batched_matmul(scaled_q, scale(k_expanded), transpose_b=True))
    unused = to(attn, dtype)
    output = to(batched_matmul(attn, v_expanded, transpose_b=False), dtype)
    del unused
    paper.autocast_dtype = outer
    return output


def _causal_bias(q: PaperTensor) -> PaperTensor:
    """The lower triangle as an fp32 bias of ``[s, s]``."""
    paper, s = q.paper, q.shape[2]
    paper.rule = "attention bias"
    ones = empty(paper, (s, s), "bool")
    triangle = empty(paper, (s, s), "bool")
    del ones
    return _additive(triangle, "fp32")


def _safe_softmax(x: PaperTensor) -> PaperTensor:
    """``_safe_softmax``: rows that are masked throughout are looked for, in one byte an element."""
    result = _softmax_fp32(x)
    masked = empty(x.paper, x.shape, "bool")
    rows = empty(x.paper, x.shape[:3], "bool")
    zero = empty(x.paper, (), "fp32")
    del zero, rows, masked
    return result


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
