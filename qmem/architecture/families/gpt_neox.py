"""GPT-NeoX: Pythia, Dolly, RedPajama.  One linear for query, key and value; rotary positions on a quarter of a head.

Structure and defaults: transformers 5.23, ``models/gpt_neox``; up to 4.x the head was called ``embed_out``.
"""

from qmem.architecture.families.decoder import read_layers, rotary_buffers, rotary_elements
from qmem.architecture.fields import MAX_POSITIONS, Fields
from qmem.architecture.outline import Block, Outline


def gpt_neox(fields: Fields) -> Outline:
    """Biases in the MLP always, in attention by a flag."""
    hidden, vocab = fields.size("hidden_size"), fields.size("vocab_size")
    heads = fields.size("num_attention_heads")
    fields.must_divide("num_attention_heads", "hidden_size")
    _read_what_runs(fields)
    opening, closing = Block(), Block()
    opening.embedding("gpt_neox.embed_in", vocab, hidden)
    opening.without_parameters("gpt_neox.emb_dropout")
    closing.norm("gpt_neox.final_layer_norm", hidden, bias=True)
    closing.without_parameters("gpt_neox.rotary_emb")
    closing.head("lm_head", vocab, hidden, tied=fields.flag("tie_word_embeddings", absent=False))
    return Outline(
        opening,
        "gpt_neox.layers",
        [_layer(fields, hidden)] * read_layers(fields),
        closing,
        "gpt_neox.embed_in",
        hidden,
        fields.size_or("max_position_embeddings", 2048, most=MAX_POSITIONS),
        buffers=rotary_buffers("gpt_neox.rotary_emb", _frequencies(fields, hidden // heads)),
    )


def _read_what_runs(fields: Fields) -> None:
    """What changes no tensor, but the step."""
    for name in ("hidden_dropout", "attention_dropout"):
        fields.probability(name, 0.0)
    fields.word("hidden_act", "gelu")
    fields.flag("use_parallel_residual", absent=True)


def _layer(fields: Fields, hidden: int) -> Block:
    inner, bias = fields.size("intermediate_size"), fields.flag("attention_bias", absent=True)
    layer = Block()
    layer.norm("input_layernorm", hidden, bias=True)
    layer.norm("post_attention_layernorm", hidden, bias=True)
    layer.without_parameters("post_attention_dropout", "post_mlp_dropout")
    layer.linear("attention.query_key_value", 3 * hidden, hidden, bias=bias)
    layer.linear("attention.dense", hidden, hidden, bias=bias)
    layer.linear("mlp.dense_h_to_4h", inner, hidden, bias=True)
    layer.linear("mlp.dense_4h_to_h", hidden, inner, bias=True)
    layer.without_parameters("mlp.act")
    return layer


def _frequencies(fields: Fields, head_dim: int) -> int:
    """The config names the rotary part ``rotary_pct``; transformers 5 moved it into ``rope_parameters``."""
    rope = fields.mapping("rope_scaling", "rope_parameters")
    factor = Fields(rope).fraction("partial_rotary_factor", fields.fraction("rotary_pct", 0.25))
    fields.values["partial_rotary_factor"] = factor
    return rotary_elements(rope, head_dim, factor, always_partial=True)
