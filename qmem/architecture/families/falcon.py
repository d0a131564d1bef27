"""Falcon: query, key and value in one linear whose width has three layouts; one, two or parallel norms.

Its linears are ``FalconLinear``, a class derived from ``nn.Linear``.
Structure and defaults: transformers 5.23, ``models/falcon``.
"""

from qmem.architecture.families.decoder import read_layers, read_rotary, rotary_buffers
from qmem.architecture.fields import MAX_POSITIONS, Fields
from qmem.architecture.outline import Block, Outline


def falcon(fields: Fields) -> Outline:
    """Falcon 7B (multi-query), 40B and 180B (new decoder architecture), RW (ALiBi)."""
    hidden, vocab = fields.size("hidden_size", "n_embed"), fields.size("vocab_size")
    heads = fields.size("num_attention_heads")
    fields.must_divide("num_attention_heads", "hidden_size")
    _read_what_runs(fields)
    opening, closing = Block(), Block()
    opening.embedding("transformer.word_embeddings", vocab, hidden)
    closing.norm("transformer.ln_f", hidden, bias=True)
    closing.without_parameters("transformer.rotary_emb")
    closing.head("lm_head", vocab, hidden, tied=fields.flag("tie_word_embeddings", absent=True))
    positions = fields.size_or("max_position_embeddings", 2048, most=MAX_POSITIONS)
    return Outline(
        opening,
        "transformer.h",
        [_layer(fields, hidden, heads)] * read_layers(fields),
        closing,
        "transformer.word_embeddings",
        hidden,
        None if fields.flag("alibi", absent=False) else positions,
        buffers=rotary_buffers("transformer.rotary_emb", read_rotary(fields, hidden // heads)),
    )


def _read_what_runs(fields: Fields) -> None:
    """What changes no tensor, but the step."""
    for name in ("hidden_dropout", "attention_dropout"):
        fields.probability(name, 0.0)
    fields.word("activation", "gelu")


def _layer(fields: Fields, hidden: int, heads: int) -> Block:
    inner, bias = fields.size_or("ffn_hidden_size", 4 * hidden, null=4 * hidden), fields.flag("bias", absent=False)
    layer = Block()
    layer.linear("self_attention.query_key_value", _qkv_width(fields, hidden, heads), hidden, bias=bias, plain=False)
    layer.linear("self_attention.dense", hidden, hidden, bias=bias, plain=False)
    layer.without_parameters("self_attention.attention_dropout")
    layer.linear("mlp.dense_h_to_4h", inner, hidden, bias=bias, plain=False)
    layer.linear("mlp.dense_4h_to_h", hidden, inner, bias=bias, plain=False)
    layer.without_parameters("mlp.act")
    for name in _norms(fields):
        layer.norm(name, hidden, bias=True)
    return layer


def _qkv_width(fields: Fields, hidden: int, heads: int) -> int:
    head_dim = hidden // heads
    multi_query = fields.flag("multi_query", absent=True)
    kv_heads = fields.size_or("num_kv_heads", heads, null=heads)
    if fields.flag("new_decoder_architecture", absent=False):
        fields.must_divide("num_kv_heads", "num_attention_heads")
        return (2 * kv_heads + heads) * head_dim
    return hidden + 2 * head_dim if multi_query else 3 * hidden


def _norms(fields: Fields) -> tuple[str, ...]:
    """The norms of a layer in the order in which ``FalconDecoderLayer`` makes them."""
    new = fields.flag("new_decoder_architecture", absent=False)
    if not fields.flag("parallel_attn", absent=True):
        return ("post_attention_layernorm", "input_layernorm")
    default = 2 if new else 1
    n_norms = fields.size_or("num_ln_in_parallel_attn", default, null=default)
    return ("ln_attn", "ln_mlp") if n_norms == 2 else ("input_layernorm",)  # noqa: PLR2004 (two norms, one for each)
