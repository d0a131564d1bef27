"""DeepSeek V2 and V3: attention through a narrow latent, experts beside shared ones, the first layers dense.

Structure and defaults: transformers 5.23, ``models/{deepseek_v2,deepseek_v3}``.
"""

from qmem.architecture.architecture import Buffer
from qmem.architecture.families.decoder import (
    decoder_outline,
    gated_mlp,
    layer_norms,
    read_layers,
    read_rotary,
    rotary_buffers,
)
from qmem.architecture.families.mixture import check_choice, fused_experts_of
from qmem.architecture.fields import MAX_EXPERTS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UnsupportedError


def deepseek_v2(fields: Fields, *, fused_experts: bool) -> Outline:
    """DeepSeek V2 and V2-Lite: all of a token's experts by probability, at once or from a few groups."""
    _refuse_separate_experts("deepseek_v2", fused=fused_experts)
    fields.word("topk_method", "greedy")
    fields.size_or_null("n_group", None)
    layers = _layers(fields, first_dense=0, shared=2, inner=1407, mlp_bias=fields.flag("mlp_bias", absent=False))
    return _outline(fields, layers, (), positions=2048)


def deepseek_v3(fields: Fields, *, fused_experts: bool) -> Outline:
    """DeepSeek V3 and R1: experts by groups, with a correction that is a buffer of each router."""
    _refuse_separate_experts("deepseek_v3", fused=fused_experts)
    fields.flag("norm_topk_prob", absent=True)
    fields.flag("rope_interleave", absent=True)
    fields.size_or("n_group", 8)
    fields.size_or("topk_group", 4)
    layers = _layers(fields, first_dense=3, shared=1, inner=2048, mlp_bias=False)
    n_experts = fields.values["n_routed_experts"]
    corrections = tuple(
        Buffer(f"model.layers.{index}.mlp.gate.e_score_correction_bias", (n_experts,), "model", persistent=True)
        for index in range(fields.values["first_k_dense_replace"], len(layers))
    )
    return _outline(fields, layers, corrections, positions=4096)


def _refuse_separate_experts(family: str, *, fused: bool) -> None:
    if not fused:
        raise UnsupportedError(
            f"{family} under transformers before 5 is not modelled", hint="use a stack with transformers 5"
        )


def _layers(fields: Fields, *, first_dense: int, shared: int, inner: int, mlp_bias: bool) -> list[Block]:
    """The first layers have a plain MLP."""
    hidden = fields.size("hidden_size")
    n_experts = fields.size("n_routed_experts", "num_experts", "num_local_experts", most=MAX_EXPERTS)
    check_choice(fields, n_experts)
    inner, shared = fields.size_or("moe_intermediate_size", inner), fields.size_or("n_shared_experts", shared)
    sparse, dense = Block(), Block()
    for layer in (sparse, dense):
        _latent_attention(layer, fields, hidden)
    fused_experts_of(sparse, n_experts, hidden, inner)
    sparse.parameter("mlp.gate.weight", (n_experts, hidden), "router")
    gated_mlp(sparse, hidden, inner * shared, name="mlp.shared_experts", bias=mlp_bias)
    gated_mlp(dense, hidden, fields.size("intermediate_size"), bias=mlp_bias)
    for layer in (sparse, dense):
        layer_norms(layer, hidden)
    n_dense = fields.count_or("first_k_dense_replace", first_dense)
    return [dense if index < n_dense else sparse for index in range(read_layers(fields))]


def _latent_attention(layer: Block, fields: Fields, hidden: int) -> None:
    """Queries through a latent of their own, unless ``q_lora_rank`` is null; keys and values through a shared one."""
    n_heads = fields.size("num_attention_heads")
    plain, rotated = fields.size_or("qk_nope_head_dim", 128), fields.size_or("qk_rope_head_dim", 64)
    value, latent = fields.size_or("v_head_dim", 128), fields.size_or("kv_lora_rank", 512)
    bias, q_latent = fields.flag("attention_bias", absent=False), fields.size_or_null("q_lora_rank", 1536)
    width = n_heads * (plain + rotated)
    if q_latent is None:
        layer.linear("self_attn.q_proj", width, hidden)
    else:
        layer.linear("self_attn.q_a_proj", q_latent, hidden, bias=bias)
        layer.norm("self_attn.q_a_layernorm", q_latent)
        layer.linear("self_attn.q_b_proj", width, q_latent)
    layer.linear("self_attn.kv_a_proj_with_mqa", latent + rotated, hidden, bias=bias)
    layer.norm("self_attn.kv_a_layernorm", latent)
    layer.linear("self_attn.kv_b_proj", n_heads * (plain + value), latent)
    layer.linear("self_attn.o_proj", hidden, n_heads * value, bias=bias)


def _outline(fields: Fields, layers: list[Block], corrections: tuple[Buffer, ...], *, positions: int) -> Outline:
    fields.flag("output_router_logits", absent=False)
    rotary = rotary_buffers("model.rotary_emb", read_rotary(fields, fields.values["qk_rope_head_dim"]))
    return decoder_outline(fields, layers, (*corrections, *rotary), positions=positions)
