"""GPTBigCode: SantaCoder, StarCoder.  A GPT-2 of linears whose heads may share one key and one value.

Structure and defaults: transformers 5.23, ``models/gpt_bigcode``.
"""

from qmem.architecture.architecture import Buffer
from qmem.architecture.fields import MAX_LAYERS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UnsupportedError


def gpt_bigcode(fields: Fields) -> Outline:
    """GPTBigCode as a decoder; a config with cross-attention is refused.  The model holds a mask of all positions."""
    if fields.flag("add_cross_attention", absent=False):
        raise UnsupportedError("this GPTBigCode has cross-attention (add_cross_attention), which qmem does not model")
    hidden = fields.size("n_embd", "hidden_size")
    fields.size("n_head", "num_attention_heads")
    fields.must_divide("n_head", "n_embd")
    _read_what_runs(fields)
    vocab, positions = fields.size("vocab_size"), fields.size("n_positions", "max_position_embeddings")
    opening, closing = Block(), Block()
    opening.embedding("transformer.wte", vocab, hidden)
    opening.embedding("transformer.wpe", positions, hidden, role="position embedding")
    opening.without_parameters("transformer.drop")
    closing.norm("transformer.ln_f", hidden, bias=True)
    closing.head("lm_head", vocab, hidden, tied=fields.flag("tie_word_embeddings", absent=True))
    layers = [_layer(fields, hidden)] * fields.size("n_layer", "num_hidden_layers", most=MAX_LAYERS)
    return Outline(
        opening,
        "transformer.h",
        layers,
        closing,
        "transformer.wte",
        hidden,
        positions,
        learned_positions=True,
        buffers=(Buffer("transformer.bias", (positions, positions), "bool"),),
    )


def _read_what_runs(fields: Fields) -> None:
    """What changes no tensor, but the step."""
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        fields.probability(name, 0.1)
    fields.word("activation_function", "gelu_pytorch_tanh")


def _layer(fields: Fields, hidden: int) -> Block:
    inner = fields.size_or("n_inner", 4 * hidden, null=4 * hidden)
    head_dim = hidden // fields.values["n_head"]
    kv_width = head_dim if fields.flag("multi_query", absent=True) else hidden
    layer = Block()
    layer.norm("ln_1", hidden, bias=True)
    layer.linear("attn.c_attn", hidden + 2 * kv_width, hidden, bias=True)
    layer.linear("attn.c_proj", hidden, hidden, bias=True)
    layer.without_parameters("attn.resid_dropout")
    layer.norm("ln_2", hidden, bias=True)
    layer.linear("mlp.c_fc", inner, hidden, bias=True)
    layer.linear("mlp.c_proj", hidden, inner, bias=True)
    layer.without_parameters("mlp.act", "mlp.dropout")
    return layer
