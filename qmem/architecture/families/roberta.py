"""RoBERTa: an encoder with learned positions and norms after each part, as a masked language model.

Structure and defaults: transformers 5.23, ``models/roberta``.  The head's bias stands before its own linear.
"""

from qmem.architecture.architecture import Buffer
from qmem.architecture.families.decoder import read_layers
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UnsupportedError, UsageError


def roberta(fields: Fields) -> Outline:
    """``RobertaForMaskedLM``; a config of a decoder is refused."""
    for name in ("is_decoder", "add_cross_attention"):
        if fields.flag(name, absent=False):
            raise UnsupportedError(f"this RoBERTa is a decoder ({name}), which qmem does not model")
    hidden, vocab = fields.size("hidden_size"), fields.size("vocab_size")
    fields.size("num_attention_heads")
    fields.must_divide("num_attention_heads", "hidden_size")
    _read_what_runs(fields)
    rows = fields.size_or("max_position_embeddings", 512)
    buffers = tuple(
        Buffer(f"roberta.embeddings.{name}", (1, rows), "int64") for name in ("position_ids", "token_type_ids")
    )
    return Outline(
        _embeddings(fields, hidden, vocab, rows),
        "roberta.encoder.layer",
        [_layer(fields, hidden)] * read_layers(fields),
        _head(fields, hidden, vocab),
        "roberta.embeddings.word_embeddings",
        hidden,
        _positions(fields, rows),
        learned_positions=True,
        buffers=buffers,
    )


def _read_what_runs(fields: Fields) -> None:
    """What changes no tensor, but the step."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        fields.probability(name, 0.1)
    fields.word("hidden_act", "gelu")


def _positions(fields: Fields, rows: int) -> int:
    """Positions begin after the padding's row (``create_position_ids_from_input_ids``)."""
    padding = fields.count_or("pad_token_id", 1)
    if rows <= padding + 1:
        raise UsageError(f"max_position_embeddings is {rows}, which leaves no position after padding, {padding}")
    return rows - padding - 1


def _embeddings(fields: Fields, hidden: int, vocab: int, rows: int) -> Block:
    opening = Block()
    opening.embedding("roberta.embeddings.word_embeddings", vocab, hidden)
    types = fields.size_or("type_vocab_size", 2)
    opening.embedding("roberta.embeddings.token_type_embeddings", types, hidden, role="type embedding")
    opening.norm("roberta.embeddings.LayerNorm", hidden, bias=True)
    opening.without_parameters("roberta.embeddings.dropout")
    opening.embedding("roberta.embeddings.position_embeddings", rows, hidden, role="position embedding")
    return opening


def _layer(fields: Fields, hidden: int) -> Block:
    inner = fields.size("intermediate_size")
    layer = Block()
    for name in ("query", "key", "value"):
        layer.linear(f"attention.self.{name}", hidden, hidden, bias=True)
    layer.without_parameters("attention.self.dropout")
    layer.linear("attention.output.dense", hidden, hidden, bias=True)
    layer.norm("attention.output.LayerNorm", hidden, bias=True)
    layer.without_parameters("attention.output.dropout")
    layer.linear("intermediate.dense", inner, hidden, bias=True)
    layer.without_parameters("intermediate.intermediate_act_fn")
    layer.linear("output.dense", hidden, inner, bias=True)
    layer.norm("output.LayerNorm", hidden, bias=True)
    layer.without_parameters("output.dropout")
    return layer


def _head(fields: Fields, hidden: int, vocab: int) -> Block:
    closing = Block()
    closing.parameter("lm_head.bias", (vocab,), "bias")
    closing.linear("lm_head.dense", hidden, hidden, bias=True)
    closing.norm("lm_head.layer_norm", hidden, bias=True)
    tied = fields.flag("tie_word_embeddings", absent=True)
    closing.head("lm_head.decoder", vocab, hidden, tied=tied, bias=True, shares_bias=tied)
    return closing
