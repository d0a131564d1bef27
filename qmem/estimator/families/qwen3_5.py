"""The step of a Qwen3.5: three layers of linear attention to one of full attention, and norms as a Gemma's.

Linear attention runs the torch code of transformers, as it does where the packages flash-linear-attention and
causal-conv1d are not installed.  Source: transformers 5.23.0 ``models/qwen3_5/modeling_qwen3_5.py``.
"""

from collections.abc import Mapping, Sequence

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation, sigmoid
from qmem.estimator.attention import attend
from qmem.estimator.chunks import alias
from qmem.estimator.convolution import causal_conv1d
from qmem.estimator.delta_rule import chunk_gated_delta_rule, exp, softplus
from qmem.estimator.families import llama
from qmem.estimator.families.gemma import rms_norm
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import FULL, causal_mask, no_recurrent_mask
from qmem.estimator.norms import GatedRMSNorm
from qmem.estimator.operations import add, mul, negate, swap_heads, to, view
from qmem.estimator.paper import DTYPE_BYTES, Module, Paper, PaperTensor, Role, empty
from qmem.estimator.rotary import Tables, apply_rotary
from qmem.estimator.slicing import cat_last, part, split
from qmem.estimator.tape import Gradients, record
from qmem.ledger import Kind

LINEAR = "linear_attention"


def build(parts: Parts) -> CausalLM:
    """A Llama of Qwen3.5's parts."""
    of = options(parts)
    layers = [
        llama.DecoderLayer(parts.paper, of, modules, mixer(parts, of, index, modules))
        for index, modules in layer_modules(parts, of).items()
    ]
    return CausalLM(decoder(parts, of, layers), parts.head())


def options(parts: Parts) -> llama.LlamaOptions:
    """Those of a Llama whose heads are rotated in part.

    Raises:
        UnsupportedError: the rotary frequencies depend on the length of the sequence.
    """
    of = llama.options(parts)
    if of.long_rope:
        raise UnsupportedError(
            "longrope in a model with linear attention is not modelled yet", hint="use rope_type yarn"
        )
    rotary_dim = int(of.head_dim * parts.config["partial_rotary_factor"])
    kinds = parts.config["layer_types"]
    return of._replace(qk_norm=True, rotary_dim=rotary_dim, layer_types=kinds, mask_kinds=(FULL,))


def layer_modules(parts: Parts, of: llama.LlamaOptions) -> dict[int, dict[str, Module]]:
    """The linears and norms of every layer."""
    names = {FULL: (*llama.PRE_NORMS, *llama.QK_NORMS), LINEAR: llama.PRE_NORMS}
    return {
        index: llama.layer_modules(parts, index, *names[of.kind(index)], norm=rms_norm)
        for index in range(parts.n_layers)
    }


def mixer(
    parts: Parts,
    of: llama.LlamaOptions,
    layer: int,
    modules: Mapping[str, Module],
    linear: "type[GatedDeltaNet] | None" = None,
) -> Module:
    """What a layer mixes its tokens by; ``linear`` is the class of linear attention."""
    if of.kind(layer) == FULL:
        return GatedAttention(parts.paper, of, modules)
    return (linear or GatedDeltaNet)(parts, of, layer, modules)


def decoder(
    parts: Parts, of: llama.LlamaOptions, layers: Sequence[Module], model: "type[Decoder] | None" = None
) -> llama.Decoder:
    """The decoder around its layers."""
    return llama.decoder(parts, of, layers, norm=rms_norm, model=model or Decoder)


class GatedAttention(llama.Attention):
    """``Qwen3_5Attention``."""

    def forward(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor, mask: PaperTensor | None
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Half of the query projection gates the result."""
        of, modules = self.of, self.projections
        b, s, _ = hidden_states.shape
        both = (of.head_dim, of.head_dim)
        query_states, gate = split(
            view(modules["self_attn.q_proj"](hidden_states), (b, s, of.n_heads, sum(both))), both
        )
        gate = merged_heads(gate)
        query_states = swap_heads(modules["self_attn.q_norm"](query_states))
        k_norm = modules["self_attn.k_norm"]
        key_states = swap_heads(llama.split_heads(modules["self_attn.k_proj"](hidden_states), of.n_kv_heads, k_norm))
        value_states = swap_heads(llama.split_heads(modules["self_attn.v_proj"](hidden_states), of.n_kv_heads))
        query_states, key_states = self.rotated(query_states, key_states, cos, sin)
        attn_output, attn_weights = attend(
            query_states, key_states, value_states, mask, attention=of.attention, drop=of.attention_dropout
        )
        attn_output = view(attn_output, (b, s, of.n_heads * of.head_dim))
        attn_output = mul(attn_output, sigmoid(gate))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights

    def rotated(self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> Tables:
        """The first part of each head is rotated, the rest passes."""
        dim = self.of.rotary_dim
        q_rot, q_pass = part(q, dim), part(q, q.shape[-1] - dim)
        k_rot, k_pass = part(k, dim), part(k, k.shape[-1] - dim)
        q_embed, k_embed = apply_rotary(q_rot, k_rot, cos, sin)
        q_embed = cat_last(q_embed, q_pass)
        k_embed = cat_last(k_embed, k_pass)
        return q_embed, k_embed


def merged_heads(x: PaperTensor) -> PaperTensor:
    """``x.reshape(b, s, -1)``: a copy of heads that stand apart, being part of a wider tensor."""
    b, s, h, d = x_shape = x.shape
    shape = (b, s, h * d)
    node = record(x.paper, "reshape", [x], lambda g, _: (alias(g, x_shape),))
    stands_apart = x.storage.n_bytes > x.numel * DTYPE_BYTES[x.dtype]
    if stands_apart and h > 1 < d:
        return empty(x.paper, shape, x.dtype, node)
    return PaperTensor(shape, x.dtype, x.storage, node, base=x)


class GatedDeltaNet(Module):
    """``Qwen3_5GatedDeltaNet``: a short convolution, then the gated delta rule."""

    def __init__(self, parts: Parts, of: llama.LlamaOptions, layer: int, modules: Mapping[str, Module]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "linear_attn"))
        config, name = parts.config, f"{parts.architecture.layers_name}.{layer}.linear_attn"
        self.activation: Activation = of.activation
        self.n_key_heads, self.key_dim = config["linear_num_key_heads"], config["linear_key_head_dim"]
        self.n_heads, self.value_dim = config["linear_num_value_heads"], config["linear_value_head_dim"]
        self.projections = modules
        self.norm = GatedRMSNorm(parts.paper, "linear_attn.norm", parts.weight(f"{name}.norm"))
        self.conv_weight = parts.tensor(f"{name}.conv1d.weight")
        self.decay_log, self.dt_bias = parts.tensor(f"{name}.A_log"), parts.tensor(f"{name}.dt_bias")

    def forward(
        self, hidden_states: PaperTensor, _cos: PaperTensor, _sin: PaperTensor, _mask: None
    ) -> tuple[PaperTensor, None]:
        """Each head of values learns and forgets by gates of its own, and a third one gates its result."""
        b, s, _ = hidden_states.shape
        *_kept, mixed_qkv, z, beta_logits, a = self.projected(hidden_states)
        query, key, value = self._heads(mixed_qkv)
        beta = sigmoid(beta_logits)
        g = mul(negate(exp(to(self.decay_log, "fp32"))), softplus(add(to(a, "fp32"), self.dt_bias)))
        core_attn_out = chunk_gated_delta_rule(query, key, value, g, beta)
        core_attn_out = _rows(core_attn_out)
        z = _rows(z)
        core_attn_out = self.norm(core_attn_out, z)
        core_attn_out = view(core_attn_out, (b, s, self.n_heads * self.value_dim))
        output: PaperTensor = self.projections["linear_attn.out_proj"](core_attn_out)
        return output, None

    def projected(self, hidden_states: PaperTensor) -> list[PaperTensor]:
        """What else lives as long; queries, keys and values after their convolution; the logits of all gates."""
        modules = self.projections
        b, s, _ = hidden_states.shape
        mixed_qkv = modules["linear_attn.in_proj_qkv"](hidden_states)
        mixed_qkv = channels_first(mixed_qkv)
        z = view(modules["linear_attn.in_proj_z"](hidden_states), (b, s, self.n_heads, self.value_dim))
        beta_logits = modules["linear_attn.in_proj_b"](hidden_states)
        a = modules["linear_attn.in_proj_a"](hidden_states)
        mixed_qkv = causal_conv1d(mixed_qkv, self.conv_weight, self.activation)
        return [channels_last(mixed_qkv), z, beta_logits, a]

    def _heads(self, mixed_qkv: PaperTensor) -> list[PaperTensor]:
        """Queries, keys and values as ``[b, s, heads, d]``."""
        b, s, _ = mixed_qkv.shape
        heads = ((self.n_key_heads, self.key_dim), (self.n_key_heads, self.key_dim), (self.n_heads, self.value_dim))
        parts = split(mixed_qkv, [n * d for n, d in heads])
        return [_head_view(x, (b, s, n, d)) for x, (n, d) in zip(parts, heads, strict=True)]


def channels_first(x: PaperTensor) -> PaperTensor:
    """``x.transpose(1, 2)`` of what a linear made: a view, forward and backward."""
    b, s, channels = x_shape = x.shape
    node = record(x.paper, "transpose", [x], lambda g, _: (alias(g, x_shape, swapped=b > 1),))
    return PaperTensor((b, channels, s), x.dtype, x.storage, node, base=x, swapped=True)


def channels_last(x: PaperTensor) -> PaperTensor:
    """``x.transpose(1, 2)`` of what a convolution made: the same the other way round."""
    b, channels, s = x_shape = x.shape
    node = record(x.paper, "transpose", [x], lambda g, _: (alias(g, x_shape, swapped=True),))
    return PaperTensor((b, s, channels), x.dtype, x.storage, node, base=x)


def _head_view(x: PaperTensor, shape: tuple[int, ...]) -> PaperTensor:
    """``x.reshape(b, s, heads, d)`` of channels that lie token by token; backward merges heads by a copy."""
    x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (empty(g.paper, x_shape, g.dtype) if g.swapped else alias(g, x_shape),)

    return PaperTensor(shape, x.dtype, x.storage, record(x.paper, "view", [x], backward), base=x, columns=True)


def _rows(x: PaperTensor) -> PaperTensor:
    """``x.reshape(-1, d)``: a copy of heads that do not lie token by token."""
    b, s, h, d = x_shape = x.shape
    shape = (b * s * h, d)
    node = record(x.paper, "reshape", [x], lambda g, _: (alias(g, x_shape),))
    if x.swapped:
        return empty(x.paper, shape, x.dtype, node)
    return PaperTensor(shape, x.dtype, x.storage, node, base=x)


class Decoder(llama.Decoder):
    """``Qwen3_5TextModel``: positions on three grids, which are the same for text."""

    def masks(self, b: int, s: int, dtype: str) -> dict[str, PaperTensor | None]:
        """Linear attention gets no mask where nothing is padded."""
        self.n_sequences = b
        mask = causal_mask(self.paper, b, s, dtype, attention=self.of.attention)
        no_recurrent_mask(self.paper)
        return {FULL: mask, LINEAR: None}

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:
        """One row of tables a sequence."""
        tables = _grid_tables(self.paper, self.n_sequences, s, self.of.rotary_dim, dtype)
        return dict.fromkeys((FULL, LINEAR), tables)


def _grid_tables(paper: Paper, b: int, s: int, dim: int, dtype: str) -> Tables:
    """``Qwen3_5TextRotaryEmbedding.forward``: cosines and sines of all grids, of which one is put together."""
    paper.rule = "rotary embedding"
    positions = empty(paper, (3, b, s), "fp32")
    freqs = empty(paper, (3, b, s, dim // 2), "fp32")
    del positions
    cos = empty(paper, freqs.shape, "fp32")
    cos = empty(paper, freqs.shape, "fp32")
    sin = empty(paper, freqs.shape, "fp32")
    sin = empty(paper, freqs.shape, "fp32")
    sin = empty(paper, (b, 1, s, dim), "fp32")
    cos = empty(paper, (b, 1, s, dim), "fp32")
    return to(cos, dtype), to(sin, dtype)
