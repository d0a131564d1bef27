"""GPT-OSS: attention sinks, windows on every second layer, experts with biases, stored input first.

Structure and defaults: transformers 5.23, ``models/gpt_oss``.
"""

from qmem.architecture.families.decoder import (
    attention,
    decoder_outline,
    layer_norms,
    read_heads,
    read_layer_types,
    read_rotary,
    rotary_buffers,
)
from qmem.architecture.families.mixture import check_choice
from qmem.architecture.fields import MAX_EXPERTS, Fields
from qmem.architecture.outline import Block, Outline


def gpt_oss(fields: Fields, *, fused_experts: bool) -> Outline:  # noqa: ARG001 - its experts have ever been fused
    """Every layer is a mixture; biases everywhere but in the head."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    heads = read_heads(fields, n_kv=8, dim=64)
    bias = fields.flag("attention_bias", absent=True)
    n_experts = fields.size("num_local_experts", "num_experts", most=MAX_EXPERTS)
    check_choice(fields, n_experts, chosen=4)
    fields.size_or_null("sliding_window", 128)
    fields.flag("output_router_logits", absent=False)
    layer = Block()
    layer.parameter("self_attn.sinks", (heads.n,), "bias")
    attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
    layer.parameter("mlp.router.weight", (n_experts, hidden), "router")
    layer.parameter("mlp.router.bias", (n_experts,), "router")
    layer.parameter("mlp.experts.gate_up_proj", (n_experts, hidden, 2 * inner), "expert")
    layer.parameter("mlp.experts.gate_up_proj_bias", (n_experts, 2 * inner), "expert")
    layer.parameter("mlp.experts.down_proj", (n_experts, inner, hidden), "expert")
    layer.parameter("mlp.experts.down_proj_bias", (n_experts, hidden), "expert")
    layer_norms(layer, hidden)
    layers = [layer] * len(read_layer_types(fields, lambda index: index % 2 == 0))
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim))
    return decoder_outline(fields, layers, buffers, positions=131072)
