"""Gemma 1, 2 and the text model of Gemma 3: heads of 256, a tied head, a scaled embedding; norms around from 2 on.

Structure and defaults: transformers 5.23, ``models/{gemma,gemma2,gemma3}``.
"""

from collections.abc import Mapping

from qmem.architecture.architecture import Buffer
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
    rotary_elements,
)
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Block, Outline

EMBED_SCALE = Buffer("model.embed_tokens.embed_scale", (), "model")
NORMS_AROUND = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def gemma(fields: Fields) -> Outline:
    """Gemma 1: two norms a layer, as Llama."""
    hidden = fields.size("hidden_size")
    heads = read_heads(fields, n_kv=16, dim=256)
    layer = _attention_and_mlp(fields, hidden, heads)
    layer_norms(layer, hidden)
    return _outline(fields, layer, rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim)), 8192)


def gemma2(fields: Fields) -> Outline:
    """Gemma 2: four norms a layer."""
    hidden = fields.size("hidden_size")
    heads = read_heads(fields, n_kv=4, dim=256, whole=True)
    layer = _attention_and_mlp(fields, hidden, heads)
    layer_norms(layer, hidden, *NORMS_AROUND)
    _read_windows_and_caps(fields, period=2, attention_cap=50.0, logit_cap=30.0)
    return _outline(fields, layer, rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim)), 8192)


def gemma3_text(fields: Fields) -> Outline:
    """Gemma 3: norms of queries and keys, and frequencies for each type of attention among the layers."""
    hidden = fields.size("hidden_size")
    heads = read_heads(fields, n_kv=4, dim=256, whole=True)
    layer = _attention_and_mlp(fields, hidden, heads, norms_of_heads=True)
    layer_norms(layer, hidden, *NORMS_AROUND)
    period = fields.size_or("sliding_window_pattern", 6)
    _read_windows_and_caps(fields, period=period, attention_cap=None, logit_cap=None)
    dims = dict.fromkeys(fields.values["layer_types"], heads.dim)
    return _outline(fields, layer, frequencies_by_type(fields, dims), 131072)


def _attention_and_mlp(fields: Fields, hidden: int, heads: Heads, *, norms_of_heads: bool = False) -> Block:
    bias = fields.flag("attention_bias", absent=False)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
    if norms_of_heads:
        qk_norms(layer, heads.dim)
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    return layer


def _outline(fields: Fields, layer: Block, rotary: tuple[Buffer, ...], positions: int) -> Outline:
    layers = [layer] * read_layers(fields)
    fields.switch("use_bidirectional_attention")
    buffers = (EMBED_SCALE, *rotary)
    return decoder_outline(fields, layers, buffers, positions=positions, tied=True, activation="gelu_pytorch_tanh")


def _read_windows_and_caps(
    fields: Fields, *, period: int, attention_cap: float | None, logit_cap: float | None
) -> None:
    """All layers but every ``period``-th have the window; weights of attention and logits may be capped by a tanh."""
    fields.size_or_null("sliding_window", 4096)
    read_layer_types(fields, lambda index: bool((index + 1) % period))
    fields.cap("attn_logit_softcapping", attention_cap)
    fields.cap("final_logit_softcapping", logit_cap)
    fields.word("hidden_activation", "gelu_pytorch_tanh")


def frequencies_by_type(fields: Fields, head_dims: Mapping[str, int]) -> tuple[Buffer, ...]:
    """``Gemma3RotaryEmbedding``: one pair of buffers for each type, in the order of the alphabet."""
    scaling, by_type = fields.mapping("rope_scaling"), fields.mapping("rope_parameters")
    buffers = []
    for layer_type, head_dim in sorted(head_dims.items()):
        rope = {**Fields(by_type).mapping(layer_type), **(scaling if layer_type == "full_attention" else {})}
        n_elements = rotary_elements(rope, head_dim, Fields(rope).fraction("partial_rotary_factor", 1.0))
        name = f"model.rotary_emb.{layer_type}_"
        buffers += [Buffer(f"{name}{kind}", (n_elements,), "fp32") for kind in ("inv_freq", "original_inv_freq")]
    return tuple(buffers)
