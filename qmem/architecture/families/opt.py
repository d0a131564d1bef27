"""OPT: learned positions with two rows more than positions, ReLU MLP, in the smallest a narrower embedding.

Structure and defaults: transformers 5.23, ``models/opt``.  The last norm is registered before the layers.
"""

from qmem.architecture.families.decoder import read_layers
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Block, Outline

POSITION_OFFSET = 2
"""``OPTLearnedPositionalEmbedding`` keeps two rows for padding."""


def opt(fields: Fields) -> Outline:
    """Biases and norm weights by flags, both there by default."""
    hidden, vocab = fields.size("hidden_size"), fields.size("vocab_size")
    fields.size("num_attention_heads")
    fields.must_divide("num_attention_heads", "hidden_size")
    _read_what_runs(fields)
    width = fields.size_or("word_embed_proj_dim", hidden, null=hidden)
    positions = fields.size_or("max_position_embeddings", 2048)
    opening, closing = Block(), Block()
    opening.embedding("model.decoder.embed_tokens", vocab, width)
    opening.embedding("model.decoder.embed_positions", positions + POSITION_OFFSET, hidden, role="position embedding")
    if width != hidden:
        opening.linear("model.decoder.project_out", width, hidden)
        opening.linear("model.decoder.project_in", hidden, width)
    affine = fields.flag("layer_norm_elementwise_affine", absent=True)
    if fields.flag("do_layer_norm_before", absent=True) and not fields.flag("_remove_final_layer_norm", absent=False):
        opening.norm("model.decoder.final_layer_norm", hidden, weight=affine, bias=affine)
    closing.head("lm_head", vocab, width, tied=fields.flag("tie_word_embeddings", absent=True))
    layers = [_layer(fields, hidden, affine=affine)] * read_layers(fields)
    embedding = "model.decoder.embed_tokens"
    return Outline(
        opening, "model.decoder.layers", layers, closing, embedding, hidden, positions, learned_positions=True
    )


def _read_what_runs(fields: Fields) -> None:
    """What changes no tensor, but the step."""
    for name, absent in (("dropout", 0.1), ("attention_dropout", 0.0), ("layerdrop", 0.0)):
        fields.probability(name, absent)
    fields.word("activation_function", "relu")


def _layer(fields: Fields, hidden: int, *, affine: bool) -> Block:
    inner, bias = fields.size("ffn_dim"), fields.flag("enable_bias", absent=True)
    layer = Block()
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer.linear(f"self_attn.{name}", hidden, hidden, bias=bias)
    layer.without_parameters("activation_fn")
    layer.norm("self_attn_layer_norm", hidden, weight=affine, bias=affine)
    layer.linear("fc1", inner, hidden, bias=bias)
    layer.linear("fc2", hidden, inner, bias=bias)
    layer.norm("final_layer_norm", hidden, weight=affine, bias=affine)
    return layer
