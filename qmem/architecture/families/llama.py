"""Llama, and those that changed only its biases, its head width or the norms of queries and keys.

Structure and defaults: transformers 5.23, ``models/{llama,mistral,qwen2,qwen3}``.
"""

from qmem.architecture.families.decoder import (
    attention,
    decoder_outline,
    gated_mlp,
    layer_norms,
    qk_norms,
    read_heads,
    read_layer_types,
    read_layers,
    read_rotary,
    rotary_buffers,
)
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Block, Outline


def llama(fields: Fields) -> Outline:
    """Llama 1 to 3, and all that ship as it: biases by two flags."""
    hidden = fields.size("hidden_size")
    heads = read_heads(fields, whole=True)
    bias = fields.flag("attention_bias", absent=False)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
    gated_mlp(layer, hidden, fields.size("intermediate_size"), bias=fields.flag("mlp_bias", absent=False))
    layer_norms(layer, hidden)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim))
    return decoder_outline(fields, [layer] * read_layers(fields), buffers, positions=2048)


def mistral(fields: Fields) -> Outline:
    """Mistral: no biases, 8 key-value heads by default, a head width of its own in Nemo; windowed unless null."""
    hidden = fields.size("hidden_size")
    fields.size_or_null("sliding_window", 4096)
    heads = read_heads(fields, n_kv=8)
    layer = Block()
    attention(layer, hidden, heads)
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    layer_norms(layer, hidden)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim))
    return decoder_outline(fields, [layer] * read_layers(fields), buffers, positions=131072)


def qwen2(fields: Fields) -> Outline:
    """Qwen 1.5, 2 and 2.5: query, key and value always have a bias."""
    hidden = fields.size("hidden_size")
    _read_window(fields)
    heads = read_heads(fields, n_kv=32)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=True)
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    layer_norms(layer, hidden)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim))
    return decoder_outline(fields, [layer] * read_layers(fields), buffers, positions=32768)


def qwen3(fields: Fields) -> Outline:
    """Qwen3: heads of 128 whatever the hidden size, norms of queries and keys, biases by a flag."""
    hidden = fields.size("hidden_size")
    _read_window(fields)
    heads = read_heads(fields, n_kv=32, dim=128)
    bias = fields.flag("attention_bias", absent=False)
    layer = Block()
    attention(layer, hidden, heads, qkv_bias=bias, out_bias=bias)
    qk_norms(layer, heads.dim)
    gated_mlp(layer, hidden, fields.size("intermediate_size"))
    layer_norms(layer, hidden)
    buffers = rotary_buffers("model.rotary_emb", read_rotary(fields, heads.dim))
    return decoder_outline(fields, [layer] * read_layers(fields), buffers, positions=32768)


def _read_window(fields: Fields) -> None:
    """Layers from ``max_window_layers`` on have a sliding window, but only where it is switched on."""
    window = fields.size_or_null("sliding_window", 4096)
    if not fields.flag("use_sliding_window", absent=False):
        fields.values["sliding_window"] = window = None
    first = fields.count_or("max_window_layers", 28)
    read_layer_types(fields, lambda index: window is not None and index >= first)
