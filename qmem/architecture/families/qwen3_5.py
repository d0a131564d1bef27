"""Qwen3.5: three layers of linear attention to one of full attention, whose result is gated.

Structure and defaults: transformers 5.23, ``models/{qwen3_5,qwen3_5_moe}``.  Layers for the prediction of several
tokens, which its checkpoints hold too, are not loaded there.
"""

from collections.abc import Callable
from typing import NamedTuple

from qmem.architecture.families.decoder import (
    Heads,
    decoder_outline,
    gated_mlp,
    layer_norms,
    qk_norms,
    read_heads,
    read_layers,
    read_rotary,
    rotary_buffers,
)
from qmem.architecture.families.mixture import check_choice, experts_beside_shared
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UsageError

MIXERS = ("full_attention", "linear_attention")
"""What the layers of ``layer_types`` mix tokens by."""


def qwen3_5_text(fields: Fields) -> Outline:
    """The text model of Qwen3.5: a gated MLP in every layer."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    heads = read_heads(fields, n_kv=4, dim=256)
    of_type = mixing_blocks(fields, hidden, heads)
    for layer in of_type.values():
        gated_mlp(layer, hidden, inner)
        layer_norms(layer, hidden)
    layers = [of_type[kind] for kind in read_mixers(fields)]
    return gated_outline(fields, layers, heads)


def qwen3_5_moe_text(fields: Fields, *, fused_experts: bool) -> Outline:
    """The text model of a Qwen3.5 with experts, in every layer, beside one that is shared."""
    hidden = fields.size("hidden_size")
    heads = read_heads(fields, n_kv=2, dim=256)
    of_type = mixing_blocks(fields, hidden, heads)
    for layer in of_type.values():
        experts_beside_shared(layer, hidden, fields, fused=fused_experts)
        layer_norms(layer, hidden)
    check_choice(fields, fields.values["num_experts"])
    fields.flag("output_router_logits", absent=False)
    layers = [of_type[kind] for kind in read_mixers(fields)]
    return gated_outline(fields, layers, heads)


class LinearHeads(NamedTuple):
    """Heads of linear attention: those of queries and keys may be fewer than those of values."""

    n_keys: int
    n_values: int
    key_dim: int
    value_dim: int

    @property
    def key_width(self) -> int:
        """Outputs of the query or the key projection."""
        return self.n_keys * self.key_dim

    @property
    def value_width(self) -> int:
        """Outputs of the value projection, and of the gate's."""
        return self.n_values * self.value_dim


def mixing_blocks(fields: Fields, hidden: int, heads: Heads, project: "Projections | None" = None) -> dict[str, Block]:
    """The beginning of a layer of each type, up to its MLP."""
    full, linear = Block(), Block()
    _gated_attention(full, hidden, heads, bias=fields.flag("attention_bias", absent=False))
    linear_heads = read_linear_heads(fields)
    _decay_and_convolution(linear, linear_heads, fields.size_or("linear_conv_kernel_dim", 4))
    (project or _projections)(linear, hidden, linear_heads)
    return {"full_attention": full, "linear_attention": linear}


def read_linear_heads(fields: Fields) -> LinearHeads:
    """The heads of ``GatedDeltaNet``."""
    n_values = fields.size_or("linear_num_value_heads", 32)
    n_keys = fields.size_or("linear_num_key_heads", 16)
    fields.must_divide("linear_num_key_heads", "linear_num_value_heads")
    dims = (fields.size_or("linear_key_head_dim", 128), fields.size_or("linear_value_head_dim", 128))
    return LinearHeads(n_keys, n_values, *dims)


def read_mixers(fields: Fields) -> tuple[str, ...]:
    """The type of each layer: given, or full attention at every ``full_attention_interval``-th."""
    n_layers, interval = read_layers(fields), fields.size_or("full_attention_interval", 4)
    given = fields.words("layer_types")
    if given is None:
        given = tuple(MIXERS[(index + 1) % interval > 0] for index in range(n_layers))
    if len(given) != n_layers or not set(given) <= set(MIXERS):
        raise UsageError(f"layer_types in config.json must name {' or '.join(MIXERS)} for each of {n_layers} layers")
    fields.values["layer_types"] = given
    return given


def gated_outline(fields: Fields, layers: list[Block], heads: Heads) -> Outline:
    """The model around its layers: a quarter of each head is rotated."""
    rotary = read_rotary(fields, heads.dim, part=0.25, always_partial=True)
    return decoder_outline(fields, layers, rotary_buffers("model.rotary_emb", rotary), positions=32768)


def _gated_attention(layer: Block, hidden: int, heads: Heads, *, bias: bool) -> None:
    """The query projection makes the gate of attention's result too."""
    layer.linear("self_attn.q_proj", 2 * heads.width, hidden, bias=bias)
    layer.linear("self_attn.k_proj", heads.kv_width, hidden, bias=bias)
    layer.linear("self_attn.v_proj", heads.kv_width, hidden, bias=bias)
    layer.linear("self_attn.o_proj", hidden, heads.width, bias=bias)
    qk_norms(layer, heads.dim)


def _decay_and_convolution(layer: Block, heads: LinearHeads, kernel: int) -> None:
    """What ``GatedDeltaNet`` holds before its projections; one convolution runs over queries, keys and values."""
    layer.parameter("linear_attn.dt_bias", (heads.n_values,), "gate")
    layer.parameter("linear_attn.A_log", (heads.n_values,), "gate")
    channels = 2 * heads.key_width + heads.value_width
    layer.parameter("linear_attn.conv1d.weight", (channels, 1, kernel), "convolution")


def _projections(layer: Block, hidden: int, heads: LinearHeads) -> None:
    layer.norm("linear_attn.norm", heads.value_dim)
    layer.linear("linear_attn.out_proj", hidden, heads.value_width)
    layer.linear("linear_attn.in_proj_qkv", 2 * heads.key_width + heads.value_width, hidden)
    layer.linear("linear_attn.in_proj_z", heads.value_width, hidden)
    layer.linear("linear_attn.in_proj_b", heads.n_values, hidden, role="gate")
    layer.linear("linear_attn.in_proj_a", heads.n_values, hidden, role="gate")


Projections = Callable[[Block, int, LinearHeads], None]
"""Adds the norm and the projections of linear attention to a layer of a width."""
