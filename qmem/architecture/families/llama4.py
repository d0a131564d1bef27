"""The text model of Llama 4: chunks of attention, layers without rotary positions, experts in all layers or every few.

Structure and defaults: transformers 5.23, ``models/llama4``.
"""

from qmem.architecture.families.decoder import (
    attention,
    decoder_outline,
    layer_norms,
    read_heads,
    read_layers,
    read_rotary,
    read_rotated_layers,
    rotary_buffers,
)
from qmem.architecture.fields import MAX_EXPERTS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UsageError

LAYER_TYPES = ("full_attention", "chunked_attention")


def llama4_text(fields: Fields, *, fused_experts: bool) -> Outline:  # noqa: ARG001 - its experts have ever been fused
    """Llama 4 Scout and Maverick without their vision tower."""
    hidden, n_layers = fields.size_or("hidden_size", 5120), read_layers(fields)
    heads = read_heads(fields, n_kv=8, dim=128)
    bias, normalizes = fields.flag("attention_bias", absent=False), fields.flag("use_qk_norm", absent=True)
    rotates, sparse = read_rotated_layers(fields), _read_sparse(fields, n_layers)
    _read_layer_types(fields, rotates)
    _read_experts(fields)
    layers = []
    for index in range(n_layers):
        layer = Block()
        attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
        if normalizes and rotates[index]:
            layer.without_parameters("self_attn.qk_norm")
        if index in sparse:
            _experts(layer, fields, hidden)
        else:
            _mlp(layer, "feed_forward", hidden, fields.size_or("intermediate_size_mlp", 16384))
        layer_norms(layer, hidden)
        layers.append(layer)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim))
    return decoder_outline(fields, layers, buffers, positions=131072)


def _read_sparse(fields: Fields, n_layers: int) -> frozenset[int]:
    """The layers with experts."""
    step = fields.size_or("interleave_moe_layer_step", 1)
    given = fields.layer_indices("moe_layers") if fields.has("moe_layers") else None
    return frozenset(range(step - 1, n_layers, step)) if given is None else given


def _read_layer_types(fields: Fields, rotates: tuple[bool, ...]) -> None:
    """Layers that rotate look at chunks, unless ``layer_types`` says otherwise."""
    n_layers, given = fields.values["num_hidden_layers"], fields.words("layer_types")
    types = given or tuple(LAYER_TYPES[rotated] for rotated in rotates)
    if len(types) != n_layers or not set(types) <= set(LAYER_TYPES):
        raise UsageError(
            f"layer_types in config.json must name {' or '.join(LAYER_TYPES)} for each of {n_layers} layers"
        )
    fields.values["layer_types"] = types
    fields.size_or("attention_chunk_size", 8192)
    fields.flag("attn_temperature_tuning", absent=True)


def _read_experts(fields: Fields) -> None:
    n_experts = fields.size_or("num_local_experts", 16, most=MAX_EXPERTS)
    chosen = fields.size_or("num_experts_per_tok", 1, most=MAX_EXPERTS)
    if chosen > n_experts:
        raise UsageError(f"num_experts_per_tok is {chosen}, but a layer has only {n_experts} experts")
    fields.flag("output_router_logits", absent=False)


def _experts(layer: Block, fields: Fields, hidden: int) -> None:
    """Experts stored input first, and one that every token passes; the router's class is derived from ``nn.Linear``."""
    n_experts, inner = fields.values["num_local_experts"], fields.size_or("intermediate_size", 8192)
    layer.parameter("feed_forward.experts.gate_up_proj", (n_experts, hidden, 2 * inner), "expert")
    layer.parameter("feed_forward.experts.down_proj", (n_experts, inner, hidden), "expert")
    layer.without_parameters("feed_forward.experts.act_fn")
    layer.linear("feed_forward.router", n_experts, hidden, role="router", plain=False)
    _mlp(layer, "feed_forward.shared_expert", hidden, inner)


def _mlp(layer: Block, name: str, hidden: int, inner: int) -> None:
    layer.linear(f"{name}.gate_proj", inner, hidden)
    layer.linear(f"{name}.up_proj", inner, hidden)
    layer.linear(f"{name}.down_proj", hidden, inner)
    layer.without_parameters(f"{name}.activation_fn")
