"""Qwen3-Next: Qwen3.5's layers with experts, and two projections of linear attention in the place of four.

Structure and defaults: transformers 5.23, ``models/qwen3_next``.  The layer for the prediction of several tokens, which
its checkpoint holds too, is not loaded there.
"""

from qmem.architecture.families.decoder import gated_mlp, layer_norms, read_heads
from qmem.architecture.families.mixture import alternating, experts_beside_shared
from qmem.architecture.families.qwen3_5 import LinearHeads, gated_outline, mixing_blocks, read_mixers
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Block, Outline


def qwen3_next(fields: Fields, *, fused_experts: bool) -> Outline:
    """A layer is a mixture at every ``decoder_sparse_step``, unless ``mlp_only_layers`` names it."""
    hidden = fields.size("hidden_size")
    heads = read_heads(fields, n_kv=2, dim=256)
    sparse, dense = (mixing_blocks(fields, hidden, heads, _projections) for _ in range(2))
    inner = fields.size_or("intermediate_size", 5632)
    for kind in sparse:
        experts_beside_shared(sparse[kind], hidden, fields, fused=fused_experts)
        gated_mlp(dense[kind], hidden, inner)
        layer_norms(sparse[kind], hidden)
        layer_norms(dense[kind], hidden)
    fields.flag("norm_topk_prob", absent=True)
    fields.flag("output_router_logits", absent=False)
    n_experts = fields.values["num_experts"]
    of_kind = {kind: alternating(fields, sparse[kind], dense[kind], n_experts) for kind in sparse}
    layers = [of_kind[kind][index] for index, kind in enumerate(read_mixers(fields))]
    return gated_outline(fields, layers, heads)


def _projections(layer: Block, hidden: int, heads: LinearHeads) -> None:
    """Queries, keys, values and the gate in one, grouped by head of keys; both gates of a head in another."""
    layer.linear("linear_attn.in_proj_qkvz", 2 * (heads.key_width + heads.value_width), hidden)
    layer.linear("linear_attn.in_proj_ba", 2 * heads.n_values, hidden, role="gate")
    layer.norm("linear_attn.norm", heads.value_dim)
    layer.linear("linear_attn.out_proj", hidden, heads.value_width)
