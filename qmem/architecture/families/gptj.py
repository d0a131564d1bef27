"""GPT-J: attention and MLP side by side after one norm; rotary positions from a table that every layer holds.

Structure and defaults: transformers 5.23, ``models/gptj``.
"""

from qmem.architecture.architecture import Buffer
from qmem.architecture.fields import MAX_LAYERS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UsageError


def gptj(fields: Fields) -> Outline:
    """GPT-J: no biases in attention, but one in the head."""
    hidden = fields.size("n_embd", "hidden_size")
    fields.size("n_head", "num_attention_heads")
    fields.must_divide("n_head", "n_embd")
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        fields.probability(name, 0.0)
    fields.word("activation_function", "gelu_new")
    vocab, positions = fields.size("vocab_size"), fields.size("n_positions", "max_position_embeddings")
    opening, closing = Block(), Block()
    opening.embedding("transformer.wte", vocab, hidden)
    opening.without_parameters("transformer.drop")
    closing.norm("transformer.ln_f", hidden, bias=True)
    closing.head("lm_head", vocab, hidden, bias=True, tied=fields.flag("tie_word_embeddings", absent=False))
    n_layers = fields.size("n_layer", "num_hidden_layers", most=MAX_LAYERS)
    return Outline(
        opening,
        "transformer.h",
        [_layer(fields, hidden)] * n_layers,
        closing,
        "transformer.wte",
        hidden,
        positions,
        learned_positions=True,
        buffers=_tables(n_layers, positions, _rotary_dim(fields, hidden)),
    )


def _rotary_dim(fields: Fields, hidden: int) -> int:
    """How much of a head is rotated; transformers multiplies that part by tables of the same width."""
    rotary_dim, head_dim = fields.size_or("rotary_dim", 64), hidden // fields.values["n_head"]
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise UsageError(f"rotary_dim is {rotary_dim}, but must be even and at most the size of a head, {head_dim}")
    return rotary_dim


def _layer(fields: Fields, hidden: int) -> Block:
    inner = fields.size_or("n_inner", 4 * hidden, null=4 * hidden)
    layer = Block()
    layer.norm("ln_1", hidden, bias=True)
    layer.without_parameters("attn.attn_dropout", "attn.resid_dropout")
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        layer.linear(f"attn.{name}", hidden, hidden)
    layer.linear("mlp.fc_in", inner, hidden, bias=True)
    layer.linear("mlp.fc_out", hidden, inner, bias=True)
    layer.without_parameters("mlp.act", "mlp.dropout")
    return layer


def _tables(n_layers: int, positions: int, rotary_dim: int) -> tuple[Buffer, ...]:
    """Sines and cosines of all positions, once a layer."""
    return tuple(
        Buffer(f"transformer.h.{layer}.attn.embed_positions", (positions, rotary_dim), "fp32")
        for layer in range(n_layers)
    )
