"""The text model of Gemma 4: heads of two widths, shared keys and values, an embedding for every layer, experts.

Structure and defaults: transformers 5.23, ``models/gemma4``.
"""

from collections.abc import Mapping
from typing import Any

from qmem.architecture.architecture import Buffer
from qmem.architecture.families.decoder import (
    LAYER_TYPES,
    Heads,
    check_heads,
    decoder_outline,
    gated_mlp,
    layer_norms,
    read_layer_types,
)
from qmem.architecture.families.gemma import EMBED_SCALE, NORMS_AROUND, frequencies_by_type
from qmem.architecture.fields import MAX_EXPERTS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UsageError

FULL, SLIDING = LAYER_TYPES

PERIOD = 6
"""Every so-manieth layer sees all tokens, where ``layer_types`` does not say."""

OVERRIDES = ("head_dim", "num_key_value_heads")
"""What ``per_layer_config`` may give a layer of its own."""

STORES, REUSES = "store", "reuse"
"""What a layer does with keys and values that layers share."""


def gemma4_text(fields: Fields, *, fused_experts: bool) -> Outline:  # noqa: ARG001 - its experts have ever been fused
    """Gemma 4 E2B, E4B, 31B and 26B-A4B without their towers."""
    hidden = fields.size_or("hidden_size", 2304)
    types, heads, sharing = _read_layer_types(fields), _read_heads(fields), _read_sharing(fields)
    width = fields.count_or("hidden_size_per_layer_input", 256)
    fields.word("hidden_activation", "gelu_pytorch_tanh")
    fields.cap("final_logit_softcapping", None)
    _read_directions(fields)
    _read_experts(fields)
    layers = [_layer(fields, hidden, *of) for of in zip(types, heads, sharing, strict=True)]
    dims = {kind: of.dim for kind, of in zip(types, heads, strict=True)}
    return decoder_outline(
        fields, layers, _buffers(fields, len(layers), dims), positions=131072, tied=True,
        activation="gelu_pytorch_tanh",
        before_head=lambda closing: _embeddings_of_layers(closing, fields, hidden, len(layers) * width),
    )  # fmt: skip


def _read_layer_types(fields: Fields) -> tuple[str, ...]:
    """The last layer sees all tokens, whatever the config says."""
    fields.size_or("sliding_window", 512)
    types = read_layer_types(fields, lambda index: bool((index + 1) % PERIOD))
    fields.values["layer_types"] = types = (*types[:-1], FULL)
    return types


def _read_heads(fields: Fields) -> tuple[Heads, ...]:
    """The heads of every layer: those that see all tokens are wider, and where keys are values too also fewer."""
    n, n_kv = fields.size_or("num_attention_heads", 8), fields.size_or("num_key_value_heads", 4)
    dim, wide_dim = fields.size_or("head_dim", 256), fields.size_or("global_head_dim", 512)
    few = fields.size_or_null("num_global_key_value_heads", None)
    keys_are_values = fields.flag("attention_k_eq_v", absent=False)
    of_type = {SLIDING: Heads(n, n_kv, dim), FULL: Heads(n, few if few and keys_are_values else n_kv, wide_dim)}
    given = fields.mapping("per_layer_config")
    if given:
        of_type[FULL] = of_type[SLIDING]
    heads = tuple(
        _overridden(of_type[kind], _override(given, index)) for index, kind in enumerate(fields.values["layer_types"])
    )
    for of in heads:
        check_heads(of)
    if len(set(zip(fields.values["layer_types"], heads, strict=True))) > len(set(fields.values["layer_types"])):
        raise UsageError("per_layer_config in config.json gives layers of one type different heads")
    fields.values["heads"] = heads
    return heads


def _override(given: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    """What ``per_layer_config`` says of a layer, whose number may be padded with zeros."""
    numbers = [name for name in given if str(name).isdecimal() and int(name) == layer]
    return Fields(given).mapping(*numbers) if numbers else {}


def _overridden(heads: Heads, override: Mapping[str, Any]) -> Heads:
    unknown = sorted(set(override) - set(OVERRIDES))
    if unknown:
        raise UsageError(
            f"per_layer_config in config.json holds {', '.join(unknown)}, but may hold {', '.join(OVERRIDES)}"
        )
    of = Fields(override)
    return Heads(heads.n, of.size_or("num_key_value_heads", heads.n_kv), of.size_or("head_dim", heads.dim))


def _read_sharing(fields: Fields) -> tuple[str, ...]:
    """What each layer does with shared keys and values, or nothing (``kv_sharing_modes``).

    The last layers take those that the last layer of their type before them has stored.
    """
    types = fields.values["layer_types"]
    n_shared = fields.count_or("num_kv_shared_layers", 0)
    first = len(types) - n_shared
    if n_shared and (first < 1 or set(types[:first]) != set(types)):
        raise UsageError(
            f"num_kv_shared_layers is {n_shared}, but the {max(first, 0)} layers before lack a type that is among them"
        )
    makers = {first - 1 - types[:first][::-1].index(kind) for kind in set(types)} if n_shared else set()
    sharing = tuple(
        REUSES if n_shared and index >= first else STORES if index in makers else "" for index in range(len(types))
    )
    fields.values["kv_sharing"] = sharing
    return sharing


def _read_directions(fields: Fields) -> None:
    """``vision`` lets only tokens of images see later ones; the text model has none."""
    name = "use_bidirectional_attention"
    fields.values[name] = fields.has(name) and fields.word(name, "vision") == "all"


def _read_experts(fields: Fields) -> None:
    if not fields.flag("enable_moe_block", absent=False):
        return
    n_experts = fields.size("num_experts", most=MAX_EXPERTS)
    if fields.size("top_k_experts", most=MAX_EXPERTS) > n_experts:
        raise UsageError(f"top_k_experts is {fields.values['top_k_experts']}, but a layer has only {n_experts} experts")
    fields.size("moe_intermediate_size")
    fields.flag("output_router_logits", absent=False)


def _layer(fields: Fields, hidden: int, kind: str, heads: Heads, sharing: str) -> Block:
    layer, reuses = Block(), sharing == REUSES
    own_values = not (fields.values["attention_k_eq_v"] and kind == FULL)
    _attention(layer, fields, hidden, heads, reuses=reuses, own_values=own_values)
    doubled = fields.flag("use_double_wide_mlp", absent=False) and reuses
    gated_mlp(layer, hidden, fields.size_or("intermediate_size", 9216) * (2 if doubled else 1))
    layer_norms(layer, hidden, *NORMS_AROUND)
    width = fields.values["hidden_size_per_layer_input"]
    if width:
        layer.without_parameters("act_fn")
        layer.linear("per_layer_input_gate", width, hidden)
        layer.linear("per_layer_projection", hidden, width)
        layer.norm("post_per_layer_input_norm", hidden)
    if fields.values["enable_moe_block"]:
        _experts(layer, fields, hidden)
    return layer


def _attention(layer: Block, fields: Fields, hidden: int, heads: Heads, *, reuses: bool, own_values: bool) -> None:
    """A layer that takes the keys and values of another has no projections for them."""
    bias = fields.flag("attention_bias", absent=False)
    layer.linear("self_attn.q_proj", heads.width, hidden, bias=bias)
    layer.norm("self_attn.q_norm", heads.dim)
    if not reuses:
        layer.norm("self_attn.k_norm", heads.dim)
        layer.norm("self_attn.v_norm", heads.dim, weight=False)
        layer.linear("self_attn.k_proj", heads.kv_width, hidden, bias=bias)
        if own_values:
            layer.linear("self_attn.v_proj", heads.kv_width, hidden, bias=bias)
    layer.linear("self_attn.o_proj", hidden, heads.width, bias=bias)


def _experts(layer: Block, fields: Fields, hidden: int) -> None:
    """Beside the MLP."""
    n_experts, inner = fields.values["num_experts"], fields.values["moe_intermediate_size"]
    layer.parameter("router.scale", (hidden,), "router")
    layer.parameter("router.per_expert_scale", (n_experts,), "router")
    layer.norm("router.norm", hidden, weight=False)
    layer.linear("router.proj", n_experts, hidden, role="router")
    layer.parameter("experts.gate_up_proj", (n_experts, 2 * inner, hidden), "expert")
    layer.parameter("experts.down_proj", (n_experts, hidden, inner), "expert")
    layer.without_parameters("experts.act_fn")
    layer_norms(
        layer, hidden, "post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"
    )


def _embeddings_of_layers(closing: Block, fields: Fields, hidden: int, width: int) -> None:
    """A second embedding, whose rows hold a part for every layer, and a projection of the first to that width."""
    if width:
        rows = fields.size_or("vocab_size_per_layer_input", 262144)
        closing.embedding("model.embed_tokens_per_layer", rows, width, role="layer embedding")
        closing.linear("model.per_layer_model_projection", width, hidden)
        closing.norm("model.per_layer_projection_norm", fields.values["hidden_size_per_layer_input"])


def _buffers(fields: Fields, n_layers: int, dims: Mapping[str, int]) -> tuple[Buffer, ...]:
    scalars = [
        Buffer(f"model.layers.{index}.layer_scalar", (1,), "model", persistent=True) for index in range(n_layers)
    ]
    of_layers = [EMBED_SCALE._replace(name="model.embed_tokens_per_layer.embed_scale")]
    return (
        EMBED_SCALE,
        *scalars,
        *frequencies_by_type(fields, dims),
        *(of_layers if fields.values["hidden_size_per_layer_input"] else []),
    )
