"""Attention with sinks on paper tensors: a column of weights that takes what no key gets.

Sources: transformers 5.23.0 ``models/gpt_oss/modeling_gpt_oss.py`` (``eager_attention_forward``); torch 2.14.1
``derivatives.yaml`` (``cat``, ``max``, ``sub``).
"""

from qmem.estimator.attention import repeat_kv, softmax
from qmem.estimator.operations import add, batched_matmul, contiguous, like, scale, swap_heads, to
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.slicing import part
from qmem.estimator.tape import Gradients, record, save_output


def eager_with_sinks(
    q: PaperTensor, k: PaperTensor, v: PaperTensor, mask: PaperTensor, sinks: PaperTensor
) -> tuple[PaperTensor, PaperTensor]:
    """``eager_attention_forward``: one more column of weights, which is dropped after the softmax."""
    n_heads = q.shape[1]
    key_states = repeat_kv(k, n_heads)
    value_states = repeat_kv(v, n_heads)
    attn_weights = scale(batched_matmul(q, key_states, transpose_b=True))
    attn_weights = add(attn_weights, mask)
    combined_logits = _with_sinks(attn_weights, sinks)
    combined_logits = subtract(combined_logits, _max_last(combined_logits))
    probs = softmax(combined_logits)
    scores = part(probs, probs.shape[-1] - 1)
    attn_weights = to(scores, value_states.dtype)
    attn_output = batched_matmul(attn_weights, value_states, transpose_b=False)
    attn_output = contiguous(swap_heads(attn_output))
    return attn_output, attn_weights


def _with_sinks(attn_weights: PaperTensor, sinks: PaperTensor) -> PaperTensor:
    """``torch.cat([attn_weights, sinks], -1)``, the sinks expanded over batch and queries; backward hands out views."""
    b, h, q, k = shape = attn_weights.shape

    def backward(g: PaperTensor, needs: list[bool]) -> Gradients:
        of_sinks = PaperTensor((b, h, q, 1), g.dtype, g.storage, base=g) if needs[1] else None
        return PaperTensor(shape, g.dtype, g.storage, base=g), of_sinks

    node = record(attn_weights.paper, "cat", [attn_weights, sinks], backward)
    return empty(attn_weights.paper, (b, h, q, k + 1), attn_weights.dtype, node)


def _max_last(x: PaperTensor) -> PaperTensor:
    """``x.max(-1, keepdim=True).values``: saves the places; backward scatters into zeros of the shape of ``x``."""
    x_shape, shape = x.shape, (*x.shape[:-1], 1)
    node = record(x.paper, "max", [x], lambda g, _, _places: (empty(g.paper, x_shape, g.dtype),))
    values = empty(x.paper, shape, x.dtype, node)
    places = empty(x.paper, shape, "int64")
    save_output(node, places)
    return values


def subtract(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``a - b``: the gradient of ``b`` is the negative of the incoming one, at full size."""

    def backward(g: PaperTensor, needs: list[bool]) -> Gradients:
        return g if needs[0] else None, like(g) if needs[1] else None

    return like(a, record(a.paper, "sub", [a, b], backward))
