"""MPT: ALiBi instead of positions, norms and linears without biases, a tied head.

Structure and defaults: transformers 5.23, ``models/mpt``, which always widens the MLP by four.
"""

from qmem.architecture.fields import MAX_LAYERS, MAX_POSITIONS, Fields
from qmem.architecture.outline import Block, Outline


def mpt(fields: Fields) -> Outline:
    """MPT; its biases of distance are made for ``max_seq_len`` tokens, so no longer sequence runs."""
    hidden, vocab = fields.size("d_model", "hidden_size"), fields.size("vocab_size")
    fields.size("n_heads", "num_attention_heads")
    fields.must_divide("n_heads", "d_model")
    _read_attention(fields)
    opening, closing = Block(), Block()
    opening.embedding("transformer.wte", vocab, hidden)
    closing.norm("transformer.norm_f", hidden)
    closing.head("lm_head", vocab, hidden, tied=fields.flag("tie_word_embeddings", absent=True))
    return Outline(
        opening,
        "transformer.blocks",
        [_layer(hidden)] * fields.size("n_layers", "num_hidden_layers", most=MAX_LAYERS),
        closing,
        "transformer.wte",
        hidden,
        fields.size_or("max_seq_len", 2048, most=MAX_POSITIONS),
        learned_positions=True,
    )


def _read_attention(fields: Fields) -> None:
    """What changes no tensor, but the step, of ``attn_config``; the probability is that of all dropouts."""
    attention = Fields(fields.mapping("attn_config"))
    fields.values["attn_pdrop"] = attention.probability("attn_pdrop", 0)
    fields.values["clip_qkv"] = attention.cap("clip_qkv", None)


def _layer(hidden: int) -> Block:
    layer = Block()
    layer.norm("norm_1", hidden)
    layer.linear("attn.Wqkv", 3 * hidden, hidden)
    layer.linear("attn.out_proj", hidden, hidden)
    layer.norm("norm_2", hidden)
    layer.linear("ffn.up_proj", 4 * hidden, hidden)
    layer.without_parameters("ffn.act")
    layer.linear("ffn.down_proj", hidden, 4 * hidden)
    layer.without_parameters("resid_attn_dropout")
    return layer
