"""Mixtures of experts: Mixtral, Qwen2-MoE, Qwen3-MoE.

transformers 5 holds the experts of a layer as two 3-D parameters and the router as a module of its own; before, each
expert was a module of three linears and the router a linear.  Structure and defaults: transformers 5.23 and 4.48.1,
``models/{mixtral,qwen2_moe,qwen3_moe}`` (Qwen3-MoE's older form: 4.51).
"""

from qmem.architecture.families.decoder import (
    Heads,
    attention,
    decoder_outline,
    gated_mlp,
    layer_norms,
    qk_norms,
    read_heads,
    read_layer_types,
    read_layers,
    read_rotary,
    rotary_buffers,
)
from qmem.architecture.fields import MAX_EXPERTS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UsageError


def mixtral(fields: Fields, *, fused_experts: bool) -> Outline:
    """Mixtral: every layer is a mixture; before transformers 5 it was called ``block_sparse_moe``."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    fields.size_or_null("sliding_window", None)
    fields.probability("router_jitter_noise", 0.0)
    heads = read_heads(fields, n_kv=8)
    n_experts = fields.size("num_local_experts", "num_experts", most=MAX_EXPERTS)
    check_choice(fields, n_experts)
    layer = Block()
    attention(layer, hidden, heads)
    if fused_experts:
        _fused_router(layer, n_experts, hidden)
        fused_experts_of(layer, n_experts, hidden, inner)
    else:
        layer.linear("block_sparse_moe.gate", n_experts, hidden, role="router")
        _separate_mixtral_experts(layer, n_experts, hidden, inner)
    layer_norms(layer, hidden)
    return _outline(fields, [layer] * read_layers(fields), heads, 131072)


def qwen2_moe(fields: Fields, *, fused_experts: bool) -> Outline:
    """Qwen1.5-MoE and Qwen2-57B: a shared expert beside the others, biases on query, key and value."""
    hidden = fields.size("hidden_size")
    _read_choice(fields)
    last = fields.count_or("max_window_layers", 28)
    windowed = fields.values["use_sliding_window"]
    read_layer_types(fields, lambda index: windowed and index % 2 == 0 and index < last)
    heads = read_heads(fields, n_kv=16)
    qkv_bias = fields.flag("qkv_bias", absent=True)
    sparse, dense = Block(), Block()
    for layer in (sparse, dense):
        attention(layer, hidden, heads, qkv_bias=qkv_bias)
    experts_beside_shared(sparse, hidden, fields, fused=fused_experts)
    gated_mlp(dense, hidden, fields.size("intermediate_size"))
    for layer in (sparse, dense):
        layer_norms(layer, hidden)
    return _outline(fields, alternating(fields, sparse, dense, fields.values["num_experts"]), heads, 32768)


def experts_beside_shared(layer: Block, hidden: int, fields: Fields, *, fused: bool) -> None:
    """A router and experts, and one more that every token passes, with a gate of its own."""
    n_experts = fields.size("num_experts", most=MAX_EXPERTS)
    inner, shared = fields.size("moe_intermediate_size"), fields.size("shared_expert_intermediate_size")
    _router(layer, n_experts, hidden, fused=fused)
    _experts(layer, n_experts, hidden, inner, fused=fused)
    gated_mlp(layer, hidden, shared, name="mlp.shared_expert")
    layer.linear("mlp.shared_expert_gate", 1, hidden, role="router")


def qwen3_moe(fields: Fields, *, fused_experts: bool) -> Outline:
    """Qwen3-MoE: no shared expert, norms of queries and keys, the experts registered before the router."""
    hidden = fields.size("hidden_size")
    _read_choice(fields)
    heads = read_heads(fields, n_kv=4)
    bias = fields.flag("attention_bias", absent=False)
    n_experts = fields.size("num_experts", "num_local_experts", most=MAX_EXPERTS)
    inner = fields.size("moe_intermediate_size")
    sparse, dense = Block(), Block()
    for layer in (sparse, dense):
        attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
        qk_norms(layer, heads.dim)
    if not fused_experts:
        _router(sparse, n_experts, hidden, fused=False)
    _experts(sparse, n_experts, hidden, inner, fused=fused_experts)
    if fused_experts:
        _router(sparse, n_experts, hidden, fused=True)
    gated_mlp(dense, hidden, fields.size("intermediate_size"))
    for layer in (sparse, dense):
        layer_norms(layer, hidden)
    return _outline(fields, alternating(fields, sparse, dense, n_experts), heads, 32768)


def _router(layer: Block, n_experts: int, hidden: int, *, fused: bool) -> None:
    if fused:
        _fused_router(layer, n_experts, hidden)
    else:
        layer.linear("mlp.gate", n_experts, hidden, role="router")


def _experts(layer: Block, n_experts: int, hidden: int, inner: int, *, fused: bool) -> None:
    if fused:
        fused_experts_of(layer, n_experts, hidden, inner)
        return
    for expert in range(n_experts):
        name = f"mlp.experts.{expert}"
        layer.linear(f"{name}.gate_proj", inner, hidden, role="expert")
        layer.linear(f"{name}.up_proj", inner, hidden, role="expert")
        layer.linear(f"{name}.down_proj", hidden, inner, role="expert")
        layer.without_parameters(f"{name}.act_fn")


def _separate_mixtral_experts(layer: Block, n_experts: int, hidden: int, inner: int) -> None:
    for expert in range(n_experts):
        name = f"block_sparse_moe.experts.{expert}"
        layer.linear(f"{name}.w1", inner, hidden, role="expert")
        layer.linear(f"{name}.w2", hidden, inner, role="expert")
        layer.linear(f"{name}.w3", inner, hidden, role="expert")
        layer.without_parameters(f"{name}.act_fn")


def _fused_router(layer: Block, n_experts: int, hidden: int) -> None:
    layer.parameter("mlp.gate.weight", (n_experts, hidden), "router")


def fused_experts_of(layer: Block, n_experts: int, hidden: int, inner: int) -> None:
    """All experts of a layer in two parameters."""
    layer.parameter("mlp.experts.gate_up_proj", (n_experts, 2 * inner, hidden), "expert")
    layer.parameter("mlp.experts.down_proj", (n_experts, hidden, inner), "expert")
    layer.without_parameters("mlp.experts.act_fn")


def alternating(fields: Fields, sparse: Block, dense: Block, n_experts: int) -> list[Block]:
    """A layer is a mixture at every ``decoder_sparse_step``, unless ``mlp_only_layers`` names it."""
    check_choice(fields, n_experts)
    step, plain = fields.size_or("decoder_sparse_step", 1), fields.layer_indices("mlp_only_layers")
    n_layers = read_layers(fields)
    return [dense if index in plain or (index + 1) % step else sparse for index in range(n_layers)]


def _read_choice(fields: Fields) -> None:
    """Whether probabilities of the chosen experts sum to one, and whether there are windows."""
    fields.flag("norm_topk_prob", absent=False)
    fields.flag("use_sliding_window", absent=False)
    fields.size_or_null("sliding_window", 4096)


def check_choice(fields: Fields, n_experts: int, *, chosen: int | None = None) -> None:
    """How many experts a token takes, at most all; ``chosen`` is the class's default, if it has one."""
    if chosen is None:
        chosen = fields.size("num_experts_per_tok", most=MAX_EXPERTS)
    else:
        chosen = fields.size_or("num_experts_per_tok", chosen, most=MAX_EXPERTS)
    if chosen > n_experts:
        raise UsageError(f"num_experts_per_tok is {chosen}, but a layer has only {n_experts} experts")


def _outline(fields: Fields, layers: list[Block], heads: Heads, positions: int) -> Outline:
    fields.flag("output_router_logits", absent=False)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim))
    return decoder_outline(fields, layers, buffers, positions=positions)
