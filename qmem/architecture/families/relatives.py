"""Decoders in Llama's frame with other norms or another MLP, from Granite, the closest, to Phi.

Structure and defaults: transformers 5.23, ``models/{granite,smollm3,olmo,olmo2,starcoder2,cohere,glm,stablelm,phi}``.
"""

from qmem.architecture.families.decoder import (
    Heads,
    attention,
    decoder_outline,
    gated_mlp,
    layer_norms,
    read_heads,
    read_layer_types,
    read_layers,
    read_rotary,
    read_rotated_layers,
    rotary_buffers,
)
from qmem.architecture.fields import MAX_POSITIONS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UnsupportedError


def granite(fields: Fields) -> Outline:
    """Granite 3: Llama with multipliers, which are no tensors."""
    return _flagged_biases(fields, n_kv=None, positions=2048, tied=False)


def smollm3(fields: Fields) -> Outline:
    """SmolLM3: Llama, tied, with layers that skip rotary positions, which changes no tensor."""
    rotated, window = read_rotated_layers(fields), fields.size_or_null("sliding_window", None)
    windowed = fields.flag("use_sliding_window", absent=False) and window is not None
    read_layer_types(fields, lambda index: windowed and not rotated[index])
    return _flagged_biases(fields, n_kv=4, positions=32768, tied=True)


def olmo(fields: Fields) -> Outline:
    """OLMo: norms without weights."""
    hidden, heads, layer = _start(fields)
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    for name in ("input_layernorm", "post_attention_layernorm"):
        layer.norm(name, hidden, weight=False)
    fields.cap("clip_qkv", None)
    return _finish(fields, layer, heads, positions=2048, norm_weight=False)


def olmo2(fields: Fields) -> Outline:
    """OLMo 2: norms after attention and MLP, and of all heads of queries and keys together."""
    hidden, heads, layer = _start(fields)
    layer.norm("self_attn.q_norm", heads.width)
    layer.norm("self_attn.k_norm", heads.kv_width)
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    layer_norms(layer, hidden, "post_attention_layernorm", "post_feedforward_layernorm")
    return _finish(fields, layer, heads, positions=2048)


def cohere(fields: Fields) -> Outline:
    """Command R and Aya: one norm a layer, attention and MLP in parallel, norms of each head by a flag."""
    hidden, heads, layer = _start(fields)
    if fields.flag("use_qk_norm", absent=False):
        layer.parameter("self_attn.q_norm.weight", (heads.n, heads.dim), "norm")
        layer.parameter("self_attn.k_norm.weight", (heads.n_kv, heads.dim), "norm")
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    layer.norm("input_layernorm", hidden)
    return _finish(fields, layer, heads, positions=8192, tied=True)


def starcoder2(fields: Fields) -> Outline:
    """StarCoder2: GPT-2's MLP and layer norms, biases by one flag."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    heads, bias = read_heads(fields, n_kv=2), fields.flag("use_bias", absent=True)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
    layer.linear("mlp.c_fc", inner, hidden, bias=bias)
    layer.linear("mlp.c_proj", hidden, inner, bias=bias)
    layer.without_parameters("mlp.act")
    layer_norms(layer, hidden, bias=True)
    fields.size_or_null("sliding_window", None)
    fields.probability("residual_dropout", 0.0)
    fields.probability("embedding_dropout", 0.0)
    return _finish(fields, layer, heads, positions=4096, tied=True, norm_bias=True, activation="gelu_pytorch_tanh")


def glm(fields: Fields) -> Outline:
    """GLM-4 9B: gate and up in one linear, rotary positions on half of each head."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    heads = read_heads(fields, n_kv=2, dim=128)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=fields.flag("attention_bias", absent=True))
    layer.linear("mlp.gate_up_proj", 2 * inner, hidden)
    layer.linear("mlp.down_proj", hidden, inner)
    layer.without_parameters("mlp.activation_fn")
    layer_norms(layer, hidden)
    return _finish(fields, layer, heads, positions=131072, rotary_part=0.5)


def stablelm(fields: Fields) -> Outline:
    """StableLM: layer norms, rotary positions on a quarter of each head."""
    _refuse_qk_norms(fields)
    hidden = fields.size("hidden_size")
    heads = read_heads(fields, n_kv=32, whole=True)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=fields.flag("use_qkv_bias", absent=False))
    layer.without_parameters("dropout")
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    fields.probability("hidden_dropout", 0.0)
    parallel = fields.flag("use_parallel_residual", absent=False)
    layer_norms(layer, hidden, *(("input_layernorm",) if parallel else ()), bias=True)
    return _finish(fields, layer, heads, positions=4096, norm_bias=True, rotary_part=0.25)


def phi(fields: Fields) -> Outline:
    """Phi-1, 1.5 and 2: one norm a layer, biases everywhere, in the head too."""
    _refuse_qk_norms(fields)
    hidden, inner, vocab = fields.size("hidden_size"), fields.size("intermediate_size"), fields.size("vocab_size")
    heads = read_heads(fields)
    layer, opening, closing = Block(), Block(), Block()
    attention(layer, hidden, heads, qkv_bias=True, out_bias=True, out="dense")
    layer.linear("mlp.fc1", inner, hidden, bias=True)
    layer.linear("mlp.fc2", hidden, inner, bias=True)
    layer.without_parameters("mlp.activation_fn", "resid_dropout")
    layer.norm("input_layernorm", hidden, bias=True)
    opening.embedding("model.embed_tokens", vocab, hidden)
    closing.without_parameters("model.rotary_emb", "model.embed_dropout")
    closing.norm("model.final_layernorm", hidden, bias=True)
    closing.head("lm_head", vocab, hidden, tied=fields.flag("tie_word_embeddings", absent=False), bias=True)
    fields.word("hidden_act", "gelu_new")
    for dropout in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
        fields.probability(dropout, 0.0)
    positions = fields.size_or("max_position_embeddings", 2048, most=MAX_POSITIONS)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim, part=0.5, always_partial=True))
    layers = [layer] * read_layers(fields)
    return Outline(opening, "model.layers", layers, closing, "model.embed_tokens", hidden, positions, buffers=buffers)


def _start(fields: Fields) -> tuple[int, Heads, Block]:
    """A layer that begins with attention whose biases follow ``attention_bias``."""
    hidden = fields.size("hidden_size")
    heads, bias = read_heads(fields), fields.flag("attention_bias", absent=False)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
    return hidden, heads, layer


def _flagged_biases(fields: Fields, *, n_kv: int | None, positions: int, tied: bool) -> Outline:
    hidden = fields.size("hidden_size")
    heads, bias = read_heads(fields, n_kv=n_kv), fields.flag("attention_bias", absent=False)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
    gated_mlp(layer, hidden, fields.size("intermediate_size"), bias=fields.flag("mlp_bias", absent=False))
    layer_norms(layer, hidden)
    return _finish(fields, layer, heads, positions=positions, tied=tied)


def _finish(
    fields: Fields,
    layer: Block,
    heads: Heads,
    *,
    positions: int,
    tied: bool = False,
    norm_bias: bool = False,
    norm_weight: bool = True,
    rotary_part: float | None = None,
    activation: str = "silu",
) -> Outline:
    """The model around a layer; ``rotary_part`` where rotary positions cover only a part of each head."""
    n_elements = read_rotary(fields, heads.dim, part=rotary_part or 1.0, always_partial=rotary_part is not None)
    return decoder_outline(
        fields,
        [layer] * read_layers(fields),
        rotary_buffers("model.rotary_emb", n_elements),
        positions=positions,
        tied=tied,
        norm_bias=norm_bias,
        norm_weight=norm_weight,
        activation=activation,
    )


def _refuse_qk_norms(fields: Fields) -> None:
    if fields.flag("qk_layernorm", absent=False):
        raise UnsupportedError("this model has norms of queries and keys (qk_layernorm), which qmem does not model yet")
