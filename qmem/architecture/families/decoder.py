"""What most decoders since Llama share: grouped attention, a gated MLP, rotary positions, pre-norm layers.

It owns these parts; which of them a family combines, and with which biases and defaults, stands in the family's file.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qmem.architecture.architecture import Buffer
from qmem.architecture.fields import MAX_LAYERS, MAX_POSITIONS, Fields
from qmem.architecture.outline import Block, Outline
from qmem.errors import UsageError

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "proportional")
"""The keys of ``ROPE_INIT_FUNCTIONS`` (transformers 5.23, ``modeling_rope_utils.py``), ``default``, and Phi-3's old
name of longrope."""


class Heads(NamedTuple):
    """Attention heads: how many, how many of keys and values, and how wide."""

    n: int
    n_kv: int
    dim: int

    @property
    def width(self) -> int:
        """Outputs of the query projection."""
        return self.n * self.dim

    @property
    def kv_width(self) -> int:
        """Outputs of the key or the value projection."""
        return self.n_kv * self.dim


def read_heads(fields: Fields, *, n_kv: int | None = None, dim: int | None = None, whole: bool = False) -> Heads:
    """The heads that a config asks for; ``hidden_size`` must have been read.

    Args:
        fields: the config.
        n_kv: the class's default of ``num_key_value_heads``; ``None`` means as many as heads.
        dim: the class's default of ``head_dim``; ``None`` means hidden size / heads.
        whole: whether hidden size must be a multiple of heads even where ``head_dim`` is given.
    """
    heads = fields.size("num_attention_heads")
    kv_heads = fields.size_or("num_key_value_heads", n_kv or heads, null=heads)
    if whole or not (fields.has("head_dim") or dim):
        fields.must_divide("num_attention_heads", "hidden_size")
    share = fields.values["hidden_size"] // heads
    head_dim = fields.size_or("head_dim", dim or share, null=None if dim else share)
    of = Heads(heads, kv_heads, head_dim)
    check_heads(of)
    return of


def check_heads(heads: Heads) -> None:
    """Raise ``UsageError`` where heads cannot be shared evenly, or not be rotated."""
    if heads.n % heads.n_kv:
        raise UsageError(
            f"num_attention_heads is {heads.n}, which is not a multiple of num_key_value_heads, {heads.n_kv}"
        )
    if heads.dim % 2:
        raise UsageError(f"head_dim is {heads.dim}, but rotary positions need an even number")


def attention(
    block: Block, hidden: int, heads: Heads, *, qkv_bias: bool = False, out_bias: bool = False, out: str = "o_proj"
) -> None:
    """Query, key, value and output projections, as ``self_attn``."""
    block.linear("self_attn.q_proj", heads.width, hidden, bias=qkv_bias)
    block.linear("self_attn.k_proj", heads.kv_width, hidden, bias=qkv_bias)
    block.linear("self_attn.v_proj", heads.kv_width, hidden, bias=qkv_bias)
    block.linear(f"self_attn.{out}", hidden, heads.width, bias=out_bias)


def qk_norms(block: Block, head_dim: int) -> None:
    """The norms of queries and keys over one head's width."""
    block.norm("self_attn.q_norm", head_dim)
    block.norm("self_attn.k_norm", head_dim)


def gated_mlp(block: Block, hidden: int, inner: int, *, name: str = "mlp", bias: bool = False) -> None:
    """Gate, up and down projections."""
    block.linear(f"{name}.gate_proj", inner, hidden, bias=bias)
    block.linear(f"{name}.up_proj", inner, hidden, bias=bias)
    block.linear(f"{name}.down_proj", hidden, inner, bias=bias)
    block.without_parameters(f"{name}.act_fn")


def layer_norms(block: Block, hidden: int, *names: str, bias: bool = False) -> None:
    """The norms of a layer, by default before attention and before the MLP."""
    for name in names or ("input_layernorm", "post_attention_layernorm"):
        block.norm(name, hidden, bias=bias)


def rotary_elements(rope: Mapping[str, Any], head_dim: int, factor: float, *, always_partial: bool = False) -> int:
    """How many inverse frequencies a rotary embedding holds.

    ``compute_default_rope_parameters`` takes ``arange(0, dim, 2)`` of the whole head in most families; the scaled
    types, and some families always, of its first ``partial_rotary_factor`` (transformers 5.23,
    ``modeling_rope_utils.py``).
    """
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise UsageError(f"rope_type in config.json is {rope_type!r}, but must be one of {', '.join(ROPE_TYPES)}")
    if rope_type == "proportional" or (rope_type == "default" and not always_partial):
        return head_dim // 2
    return (int(head_dim * factor) + 1) // 2


def read_rotary(fields: Fields, head_dim: int, *, part: float = 1.0, always_partial: bool = False) -> int:
    """The number of inverse frequencies of a config with one kind of rotary positions.

    ``part`` is the family's default of ``partial_rotary_factor``.
    """
    rope = fields.mapping("rope_scaling", "rope_parameters")
    factor = Fields(rope).fraction("partial_rotary_factor", fields.fraction("partial_rotary_factor", part))
    fields.values["partial_rotary_factor"] = factor
    fields.values["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    return rotary_elements(rope, head_dim, factor, always_partial=always_partial)


def rotary_buffers(name: str, n_elements: int) -> tuple[Buffer, ...]:
    """The frequencies in use and, since transformers 5, a copy of the original ones."""
    return (
        Buffer(f"{name}.inv_freq", (n_elements,), "fp32"),
        Buffer(f"{name}.original_inv_freq", (n_elements,), "fp32"),
    )


def read_layers(fields: Fields) -> int:
    """The number of layers."""
    return fields.size("num_hidden_layers", most=MAX_LAYERS)


LAYER_TYPES = ("full_attention", "sliding_attention")


def read_layer_types(fields: Fields, is_windowed: Callable[[int], bool]) -> tuple[str, ...]:
    """The type of attention of each layer: given, or by the class's rule; ``sliding_window`` must have been read."""
    n_layers, given = read_layers(fields), fields.words("layer_types")
    if given is None:
        given = tuple(LAYER_TYPES[is_windowed(index)] for index in range(n_layers))
    if len(given) != n_layers or not set(given) <= set(LAYER_TYPES):
        raise UsageError(
            f"layer_types in config.json must name {' or '.join(LAYER_TYPES)} for each of {n_layers} layers"
        )
    if LAYER_TYPES[True] in given and fields.values["sliding_window"] is None:
        raise UsageError("layer_types in config.json names sliding_attention, but there is no sliding_window")
    fields.values["layer_types"] = given
    return given


def read_rotated_layers(fields: Fields) -> tuple[bool, ...]:
    """Which layers rotate: given, for each layer at least, or all but every ``no_rope_layer_interval``-th."""
    n_layers, interval = read_layers(fields), fields.size_or("no_rope_layer_interval", 4)
    given = fields.numbers("no_rope_layers")
    if given is None:
        given = tuple((index + 1) % interval for index in range(n_layers))
    if len(given) < n_layers:
        raise UsageError(f"no_rope_layers in config.json has {len(given)} values, but there are {n_layers} layers")
    fields.values["no_rope_layers"] = rotated = tuple(map(bool, given[:n_layers]))
    return rotated


def decoder_outline(
    fields: Fields,
    layers: list[Block],
    buffers: tuple[Buffer, ...],
    *,
    positions: int,
    tied: bool = False,
    norm_bias: bool = False,
    norm_weight: bool = True,
    activation: str = "silu",
    before_head: Callable[[Block], None] | None = None,
) -> Outline:
    """``model.embed_tokens``, ``model.layers``, ``model.norm``, ``lm_head``.

    ``positions``, ``tied`` and ``activation`` are the class's defaults of ``max_position_embeddings``,
    ``tie_word_embeddings`` and ``hidden_act``; ``before_head`` adds what a family registers last but for the head.
    """
    fields.word("hidden_act", activation)
    fields.probability("attention_dropout", 0.0)
    hidden, vocab = fields.values["hidden_size"], fields.size("vocab_size")
    opening, closing = Block(), Block()
    opening.embedding("model.embed_tokens", vocab, hidden)
    closing.norm("model.norm", hidden, bias=norm_bias, weight=norm_weight)
    closing.without_parameters("model.rotary_emb")
    if before_head:
        before_head(closing)
    closing.head("lm_head", vocab, hidden, tied=fields.flag("tie_word_embeddings", tied))
    max_positions = fields.size_or("max_position_embeddings", positions, most=MAX_POSITIONS)
    return Outline(
        opening, "model.layers", layers, closing, "model.embed_tokens", hidden, max_positions, buffers=buffers
    )
