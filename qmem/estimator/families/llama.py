"""The step of a Llama, line by line: norm, attention with rotary embeddings, gated MLP, all pre-norm.

Mistral, Qwen2 and Qwen3 run the same program with the differences that :class:`LlamaOptions` names; their own
files say which.  Source: transformers 5.23.0 ``models/llama/modeling_llama.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.estimator.attention import eager, sdpa
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask, position_ids
from qmem.estimator.operations import (
    add,
    add_scalar,
    cat_halves,
    contiguous,
    half,
    mean_last,
    mul,
    negate,
    rsqrt,
    silu,
    square,
    swap_heads,
    to,
    view,
)
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.ledger import Kind


class LlamaOptions(NamedTuple):
    """What a model of the Llama kind decides.

    Attributes:
        hidden, n_heads, n_kv_heads, head_dim: the shapes of attention.
        qk_norm: queries and keys are normalized per head before the rotation.
        window: sliding window of attention in tokens, if the config asks for one on every layer.
        attention: "sdpa" or "eager".
    """

    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    qk_norm: bool
    window: int | None
    attention: str


def options(parts: Parts) -> LlamaOptions:
    """The options of a Llama's config."""
    config = parts.config
    hidden, n_heads = config["hidden_size"], config["num_attention_heads"]
    return LlamaOptions(
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        head_dim=config.get("head_dim") or hidden // n_heads,
        qk_norm=False,
        window=None,
        attention=parts.attention,
    )


def build(parts: Parts) -> CausalLM:
    """A Llama."""
    return assemble(parts, options(parts))


def assemble(parts: Parts, of: LlamaOptions) -> CausalLM:
    """The model around its layers."""
    layers = [DecoderLayer(parts.paper, of, _layer_modules(parts, index, of)) for index in range(parts.n_layers)]
    norm = RMSNorm(parts.paper, "norm", parts.weight("model.norm"))
    decoder = Decoder(parts.paper, of, parts.embedding(), layers, norm, checkpoint=parts.checkpoint)
    return CausalLM(decoder, parts.head())


def _layer_modules(parts: Parts, index: int, of: LlamaOptions) -> dict[str, Module]:
    modules = parts.layer_linears(index)
    for norm in (
        "input_layernorm",
        "post_attention_layernorm",
        *(("self_attn.q_norm", "self_attn.k_norm") if of.qk_norm else ()),
    ):
        modules[norm] = RMSNorm(parts.paper, norm, parts.layer_weight(index, norm))
    return modules


class RMSNorm(Module):
    """``LlamaRMSNorm``: in fp32, result in the input's dtype (times the weight's)."""

    def __init__(self, paper: Paper, role: str, weight: PaperTensor) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight = weight

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``weight * (x * rsqrt(mean(x²) + ε))``."""
        input_dtype = hidden_states.dtype
        hidden_states = to(hidden_states, "fp32")
        variance = mean_last(square(hidden_states))
        hidden_states = mul(hidden_states, rsqrt(add_scalar(variance)))
        return mul(self.weight, to(hidden_states, input_dtype))


class Attention(Module):
    """``LlamaAttention``."""

    def __init__(self, paper: Paper, of: LlamaOptions, projections: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "self_attn"))
        self.of = of
        self.q_proj, self.k_proj = projections["self_attn.q_proj"], projections["self_attn.k_proj"]
        self.v_proj, self.o_proj = projections["self_attn.v_proj"], projections["self_attn.o_proj"]
        self.q_norm = projections["self_attn.q_norm"] if of.qk_norm else None
        self.k_norm = projections["self_attn.k_norm"] if of.qk_norm else None

    def forward(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor, mask: PaperTensor | None
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, rotate, attend, project.  Eager attention also returns its weights."""
        of = self.of
        b, s, _ = hidden_states.shape
        query_states = swap_heads(_heads(self.q_proj(hidden_states), of.n_heads, self.q_norm))
        key_states = swap_heads(_heads(self.k_proj(hidden_states), of.n_kv_heads, self.k_norm))
        value_states = swap_heads(_heads(self.v_proj(hidden_states), of.n_kv_heads, None))
        query_states, key_states = apply_rotary(query_states, key_states, cos, sin)
        attn_weights = None
        if of.attention == "eager":
            assert mask is not None, "eager attention always gets a mask"
            attn_output, attn_weights = eager(query_states, key_states, value_states, mask)
        else:
            attn_output = swap_heads(sdpa(query_states, key_states, value_states, mask))
            attn_output = contiguous(attn_output) if attn_output.swapped else attn_output
        attn_output = view(attn_output, (b, s, of.n_heads * of.head_dim))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


def _heads(x: PaperTensor, n_heads: int, norm: Module | None) -> PaperTensor:
    b, s, width = x.shape
    x = view(x, (b, s, n_heads, width // n_heads))
    return norm(x) if norm else x


def apply_rotary(q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
    """``apply_rotary_pos_emb``: ``x * cos + rotate_half(x) * sin`` for queries, then keys."""
    q_embed = add(mul(q, cos), mul(_rotate_half(q), sin))
    k_embed = add(mul(k, cos), mul(_rotate_half(k), sin))
    return q_embed, k_embed


def _rotate_half(x: PaperTensor) -> PaperTensor:
    x1 = half(x)
    x2 = half(x)
    return cat_halves(negate(x2), x1)


class MLP(Module):
    """``LlamaMLP``: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, paper: Paper, projections: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.gate_proj, self.up_proj = projections["mlp.gate_proj"], projections["mlp.up_proj"]
        self.down_proj = projections["mlp.down_proj"]

    def forward(self, x: PaperTensor) -> PaperTensor:
        """The activation's inputs and both factors are saved; the product is the input of ``down_proj``."""
        down_proj: PaperTensor = self.down_proj(mul(silu(self.gate_proj(x)), self.up_proj(x)))
        return down_proj


class DecoderLayer(Module):
    """``LlamaDecoderLayer``."""

    def __init__(self, paper: Paper, of: LlamaOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "decoder layer"))
        self.input_layernorm = modules["input_layernorm"]
        self.self_attn = Attention(paper, of, modules)
        self.post_attention_layernorm = modules["post_attention_layernorm"]
        self.mlp = MLP(paper, modules)

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and MLP, each with its residual.  Eager attention's weights live until the layer returns.

        Positions are not used, but a checkpoint keeps them with the other inputs.
        """
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, cos, sin, mask)
        hidden_states = add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = add(residual, hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Decoder(Module):
    """``LlamaModel``: embedding, rotary tables, mask, layers, norm."""

    def __init__(
        self,
        paper: Paper,
        of: LlamaOptions,
        embedding: Module,
        layers: list[DecoderLayer],
        norm: Module,
        *,
        checkpoint: Checkpoint | None,
    ) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.embedding, self.layers, self.norm = of, embedding, layers, norm
        self.checkpoint = checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  ``inputs_embeds`` is a local and lives until this returns."""
        paper, of = self.paper, self.of
        inputs_embeds = self.embedding(input_ids)
        b, s, _ = inputs_embeds.shape
        positions = position_ids(paper, s)
        mask = causal_mask(paper, b, s, inputs_embeds.dtype, attention=of.attention, window=of.window)
        hidden_states = inputs_embeds
        cos, sin = rotary_tables(paper, s, of.head_dim, inputs_embeds.dtype)
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            if self.checkpoint:
                hidden_states = self.checkpoint(layer, hidden_states, cos, sin, mask, positions)
            else:
                hidden_states = layer(hidden_states, cos, sin, mask, positions)
        paper.enter_layer(None)
        last_hidden_state: PaperTensor = self.norm(hidden_states)
        return last_hidden_state


def rotary_tables(paper: Paper, s: int, head_dim: int, dtype: str) -> tuple[PaperTensor, PaperTensor]:
    """``LlamaRotaryEmbedding.forward``: cos and sin of ``[1, s, head_dim]``, made in fp32."""
    paper.rule = "rotary embedding"
    shape = (1, 1, s, head_dim)
    positions = empty(paper, (1, s), "fp32")
    freqs = empty(paper, (1, s, head_dim // 2), "fp32")  # noqa: F841 - the local lives to the end of the frame
    del positions
    emb = empty(paper, shape, "fp32")  # noqa: F841 - so does this
    cos = empty(paper, shape, "fp32")
    cos = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    return to(cos, dtype), to(sin, dtype)
