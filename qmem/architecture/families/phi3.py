"""Phi-3, Phi-3.5 and Phi-4: query, key and value in one linear, gate and up in another.

Structure and defaults: transformers 5.23, ``models/phi3``.
"""

from qmem.architecture.families.decoder import (
    decoder_outline,
    layer_norms,
    read_heads,
    read_layers,
    read_rotary,
    rotary_buffers,
)
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Block, Outline


def phi3(fields: Fields) -> Outline:
    """Rotary positions may cover a part of each head (Phi-4-mini: three quarters)."""
    hidden = fields.size("hidden_size")
    heads = read_heads(fields)
    inner = fields.size("intermediate_size")
    layer = Block()
    layer.linear("self_attn.o_proj", hidden, heads.width)
    layer.linear("self_attn.qkv_proj", heads.width + 2 * heads.kv_width, hidden)
    layer.linear("mlp.gate_up_proj", 2 * inner, hidden)
    layer.linear("mlp.down_proj", hidden, inner)
    layer.without_parameters("mlp.activation_fn", "resid_attn_dropout", "resid_mlp_dropout")
    layer_norms(layer, hidden)
    fields.size_or_null("sliding_window", None)
    fields.probability("resid_pdrop", 0.0)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim, always_partial=True))
    return decoder_outline(fields, [layer] * read_layers(fields), buffers, positions=4096)
