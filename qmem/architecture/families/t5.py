"""T5 and Flan-T5: an encoder and a decoder that share one embedding, with learned biases of relative positions.

Structure and defaults: transformers 5.23, ``models/t5``.  The head is tied to the embedding, whatever the config says.
"""

from qmem.architecture.fields import MAX_LAYERS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UsageError


def t5(fields: Fields) -> Outline:
    """``T5ForConditionalGeneration``; the layers are those of the decoder, the encoder stands before them."""
    hidden, vocab = fields.size("d_model", "hidden_size"), fields.size("vocab_size")
    heads, head_dim = fields.size("num_heads", "num_attention_heads"), fields.size_or("d_kv", 64)
    n_layers = fields.size("num_layers", "num_hidden_layers", most=MAX_LAYERS)
    n_decoder_layers = fields.size_or("num_decoder_layers", n_layers, null=n_layers, most=MAX_LAYERS)
    fields.probability("dropout_rate", 0.1)
    fields.flag("tie_word_embeddings", absent=True)
    inner = heads * head_dim
    opening, closing = Block(), Block()
    opening.embedding("shared", vocab, hidden)
    opening.without_parameters("encoder.embed_tokens", "encoder.dropout", "decoder.embed_tokens", "decoder.dropout")
    for index in range(n_layers):
        _encoder_layer(fields, opening, f"encoder.block.{index}.layer", hidden, inner, has_bias=index == 0)
    opening.norm("encoder.final_layer_norm", hidden)
    layers = [_decoder_layer(fields, hidden, inner, has_bias=index == 0) for index in range(min(n_decoder_layers, 2))]
    closing.norm("decoder.final_layer_norm", hidden)
    closing.head("lm_head", vocab, hidden, tied=True)
    return Outline(
        opening,
        "decoder.block",
        layers[:1] + layers[1:] * (n_decoder_layers - 1),
        closing,
        "shared",
        hidden,
        None,
    )


def _encoder_layer(fields: Fields, block: Block, prefix: str, hidden: int, inner: int, *, has_bias: bool) -> None:
    _attention(fields, block, f"{prefix}.0", "SelfAttention", hidden, inner, has_bias=has_bias)
    _mlp(fields, block, f"{prefix}.1", hidden)


def _decoder_layer(fields: Fields, hidden: int, inner: int, *, has_bias: bool) -> Block:
    block = Block()
    _attention(fields, block, "layer.0", "SelfAttention", hidden, inner, has_bias=has_bias)
    _attention(fields, block, "layer.1", "EncDecAttention", hidden, inner, has_bias=False)
    _mlp(fields, block, "layer.2", hidden)
    return block


def _attention(
    fields: Fields, block: Block, prefix: str, name: str, hidden: int, inner: int, *, has_bias: bool
) -> None:
    for projection in "qkv":
        block.linear(f"{prefix}.{name}.{projection}", inner, hidden)
    block.linear(f"{prefix}.{name}.o", hidden, inner)
    if has_bias:
        buckets, heads = fields.size_or("relative_attention_num_buckets", 32), fields.values["num_heads"]
        table = f"{prefix}.{name}.relative_attention_bias"
        block.embedding(table, buckets, heads, role="position embedding")
    block.norm(f"{prefix}.layer_norm", hidden)
    block.without_parameters(f"{prefix}.dropout")


def _mlp(fields: Fields, block: Block, prefix: str, hidden: int) -> None:
    inner = fields.size("d_ff")
    gated, _ = activation_of(fields.word("feed_forward_proj", "relu"))
    for name in ("wi_0", "wi_1") if gated else ("wi",):
        block.linear(f"{prefix}.DenseReluDense.{name}", inner, hidden)
    block.linear(f"{prefix}.DenseReluDense.wo", hidden, inner)
    block.without_parameters(f"{prefix}.DenseReluDense.dropout", f"{prefix}.DenseReluDense.act", f"{prefix}.dropout")
    block.norm(f"{prefix}.layer_norm", hidden)


def activation_of(feed_forward_proj: str) -> tuple[bool, str]:
    """Whether the MLP is gated, and its activation (``T5Config.__post_init__``).

    Raises:
        UsageError: it is neither an activation nor ``gated-`` and one.
    """
    gate, _, name = feed_forward_proj.rpartition("-")
    if gate not in ("", "gated") or not name:
        raise UsageError(f"feed_forward_proj in config.json is {feed_forward_proj!r}, but must be gated-ACT or ACT")
    return bool(gate), "gelu_new" if feed_forward_proj == "gated-gelu" else name
