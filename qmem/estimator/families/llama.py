"""The step of a Llama, line by line: norm, attention with rotary embeddings, gated MLP, all pre-norm.

Most decoders since run this program with differences: those that :class:`LlamaOptions` names, or a module of their
own in the place of one of these.  Their own files say which.  Source: transformers 5.23.0
``models/llama/modeling_llama.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from qmem.estimator.activations import Activation, activation
from qmem.estimator.attention import attend
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import FULL, SLIDING, causal_masks, position_ids
from qmem.estimator.norms import RMSNorm
from qmem.estimator.operations import add, dropped, mul, silu, swap_heads, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, parameter
from qmem.estimator.rotary import Tables, apply_rotary, rotary_tables
from qmem.ledger import Kind

Norm = Callable[[Parts, str, str], Module]
"""Makes a norm of its full name and of the role that it is shown as."""


PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


class LlamaOptions(NamedTuple):
    """What a model of the Llama kind decides.

    Attributes:
        hidden, n_heads, n_kv_heads, head_dim: the shapes of attention.
        qk_norm: queries and keys are normalized per head before the rotation.
        window: sliding window of attention in tokens, on the layers whose type is ``sliding_attention``.
        attention: "sdpa" or "eager".
        attention_dropout: probability.
        activation: of the MLP.
        layer_types: the kind of attention of each layer; empty where all have the window, or none.
        mask_kinds: the kinds of masks that are made, in order; empty where those of the layers are.
        rotary_dim: how much of each head is rotated.
        long_rope: rotary frequencies depend on the length of the sequence (``rope_type`` longrope).
        soft_capped: attention weights are capped, which only eager attention can do.
        residual_dropout, embedding_dropout: probabilities, where a family drops what it adds to the residual or starts
            from.
    """

    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    qk_norm: bool
    window: int | None
    attention: str
    attention_dropout: float
    activation: Activation
    rotary_dim: int
    long_rope: bool = False
    layer_types: tuple[str, ...] = ()
    mask_kinds: tuple[str, ...] = ()
    soft_capped: bool = False
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0

    def kind(self, layer: int) -> str:
        """The kind of attention of a layer."""
        if self.layer_types:
            return self.layer_types[layer]
        return FULL if self.window is None else SLIDING

    def kinds_of_masks(self) -> tuple[str, ...]:
        """The kinds of masks that the forward makes."""
        return self.mask_kinds or (self.kind(0),)


def options(parts: Parts) -> LlamaOptions:
    """The options of a Llama's config."""
    config = parts.config
    hidden, n_heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // n_heads
    return LlamaOptions(
        hidden=hidden,
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        head_dim=head_dim,
        qk_norm=False,
        window=None,
        attention=parts.attention,
        attention_dropout=config["attention_dropout"],
        activation=activation(config.get("hidden_activation", config["hidden_act"])),
        rotary_dim=head_dim,
        long_rope=config.get("rope_type") == "longrope",
    )


def build(parts: Parts) -> CausalLM:
    """A Llama."""
    return assemble(parts, options(parts))


def assemble(parts: Parts, of: LlamaOptions) -> CausalLM:
    """The model around its layers."""
    layers = [
        DecoderLayer(parts.paper, of, layer_modules(parts, index, *norm_names(of))) for index in range(parts.n_layers)
    ]
    return CausalLM(decoder(parts, of, layers), parts.head())


def norm_names(of: LlamaOptions) -> tuple[str, ...]:
    """The norms of a layer, by their names within it."""
    return (*PRE_NORMS, *(QK_NORMS if of.qk_norm else ()))


def rms_norm(parts: Parts, name: str, role: str) -> Module:
    """The norm of a Llama."""
    return RMSNorm(parts.paper, role, parts.weight(name))


def layer_modules(parts: Parts, layer: int, *norm_names: str, norm: Norm = rms_norm) -> dict[str, Module]:
    """The linears and the norms of a layer by their names within it."""
    modules = parts.layer_linears(layer)
    prefix = f"{parts.architecture.layers_name}.{layer}."
    return modules | {name: norm(parts, prefix + name, name) for name in norm_names}


def decoder(
    parts: Parts,
    of: LlamaOptions,
    layers: Sequence[Module],
    *,
    norm: Norm = rms_norm,
    last_norm: str = "model.norm",
    embedding: Module | None = None,
    model: "type[Decoder] | None" = None,
) -> "Decoder":
    """The decoder around its layers, with a plain embedding unless one is given."""
    last = norm(parts, last_norm, "norm")
    inner = embedding or parts.embedding()
    return (model or Decoder)(parts.paper, of, inner, layers, last, checkpoint=parts.checkpoint)


class Attention(Module):
    """``LlamaAttention``."""

    def __init__(self, paper: Paper, of: LlamaOptions, projections: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "self_attn"))
        self.of = of
        self.projections = projections
        self.o_proj = projections["self_attn.o_proj"]

    def forward(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor, mask: PaperTensor | None
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, rotate, attend, project.  Eager attention also returns its weights."""
        of = self.of
        b, s, _ = hidden_states.shape
        query_states, key_states, value_states = self.heads(hidden_states)
        query_states, key_states, *_kept = self.rotated(query_states, key_states, cos, sin)
        attn_output, attn_weights = attend(
            query_states,
            key_states,
            value_states,
            mask,
            attention=of.attention,
            drop=of.attention_dropout,
            soft_capped=of.soft_capped,
        )
        attn_output = view(attn_output, (b, s, of.n_heads * of.head_dim))
        attn_output = self.o_proj(attn_output)
        attn_output = dropped(attn_output, of.residual_dropout)
        return attn_output, attn_weights

    def heads(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """Queries, keys and values as ``[b, heads, s, head_dim]``."""
        of, modules = self.of, self.projections
        q_norm, k_norm = (modules[f"self_attn.{name}_norm"] if of.qk_norm else None for name in "qk")
        query_states = swap_heads(split_heads(modules["self_attn.q_proj"](hidden_states), of.n_heads, q_norm))
        key_states = swap_heads(split_heads(modules["self_attn.k_proj"](hidden_states), of.n_kv_heads, k_norm))
        value_states = swap_heads(split_heads(modules["self_attn.v_proj"](hidden_states), of.n_kv_heads))
        return query_states, key_states, value_states

    def projected(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """The three projections, whole."""
        modules = self.projections
        query_states = modules["self_attn.q_proj"](hidden_states)
        key_states = modules["self_attn.k_proj"](hidden_states)
        value_states = modules["self_attn.v_proj"](hidden_states)
        return query_states, key_states, value_states

    def cut(
        self, query_states: PaperTensor, key_states: PaperTensor, value_states: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """Projections as ``[b, heads, s, head_dim]``."""
        of = self.of
        query_states = swap_heads(split_heads(query_states, of.n_heads))
        key_states = swap_heads(split_heads(key_states, of.n_kv_heads))
        value_states = swap_heads(split_heads(value_states, of.n_kv_heads))
        return query_states, key_states, value_states

    def rotated(self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> tuple[PaperTensor, ...]:
        """Queries and keys with their positions, and what ``forward`` keeps to its end besides."""
        return apply_rotary(q, k, cos, sin)


def split_heads(x: PaperTensor, n_heads: int, norm: Module | None = None) -> PaperTensor:
    """``[b, s, heads x head_dim]`` as ``[b, s, heads, head_dim]``, and the norm of each head."""
    b, s, width = x.shape
    x = view(x, (b, s, n_heads, width // n_heads))
    return norm(x) if norm else x


class MLP(Module):
    """``LlamaMLP``: ``down(act(gate(x)) * up(x))``."""

    def __init__(self, paper: Paper, projections: Mapping[str, Module], act_fn: Activation = silu) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.act_fn = act_fn
        self.gate_proj, self.up_proj = projections["mlp.gate_proj"], projections["mlp.up_proj"]
        self.down_proj = projections["mlp.down_proj"]

    def forward(self, x: PaperTensor) -> PaperTensor:
        """The activation's inputs and both factors are saved; the product is the input of ``down_proj``."""
        down_proj: PaperTensor = self.down_proj(mul(self.act_fn(self.gate_proj(x)), self.up_proj(x)))
        return down_proj


class DecoderLayer(Module):
    """``LlamaDecoderLayer``; another attention or MLP may stand in the place of Llama's."""

    def __init__(
        self,
        paper: Paper,
        of: LlamaOptions,
        modules: Mapping[str, Module],
        self_attn: Module | None = None,
        mlp: Module | None = None,
    ) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "decoder layer"))
        self.of, self.modules = of, modules
        self.self_attn = self_attn or Attention(paper, of, modules)
        self.mlp = mlp or MLP(paper, modules, of.activation)

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
        hidden_states = self.modules["input_layernorm"](hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, cos, sin, mask)
        hidden_states = self.joined(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.modules["post_attention_layernorm"](hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.joined(residual, hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers

    def joined(self, residual: PaperTensor, hidden_states: PaperTensor) -> PaperTensor:
        """``residual + hidden_states``."""
        return add(residual, hidden_states)


class ParallelLayer(DecoderLayer):
    """``CohereDecoderLayer``, and ``StableLmDecoderLayer`` with ``use_parallel_residual``."""

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and MLP side by side."""
        residual = hidden_states
        hidden_states = self.modules["input_layernorm"](hidden_states)
        self_attn_output, _ = self.self_attn(hidden_states, cos, sin, mask)
        mlp_output = self.mlp(hidden_states)
        mlp_output = dropped(mlp_output, self.of.residual_dropout)
        hidden_states = add(add(residual, self_attn_output), mlp_output)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Decoder(Module):
    """``LlamaModel``: embedding, rotary tables, masks, layers, norm."""

    def __init__(
        self,
        paper: Paper,
        of: LlamaOptions,
        embedding: Module,
        layers: Sequence[Module],
        norm: Module,
        *,
        checkpoint: Checkpoint | None,
    ) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.embedding, self.layers, self.norm = of, embedding, layers, norm
        self.checkpoint = checkpoint
        self.long_inv_freq: PaperTensor | None = None

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  ``inputs_embeds`` is a local and lives until this returns."""
        paper, of = self.paper, self.of
        inputs_embeds = self.embedding(input_ids)
        b, s, _ = inputs_embeds.shape
        positions = position_ids(paper, s)
        dtype = inputs_embeds.dtype
        masks = self.masks(b, s, dtype)
        inputs_embeds, hidden_states = self.entered(inputs_embeds)
        tables = self.tables(s, dtype)
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            kind = of.kind(index)
            cos, sin = tables[kind]
            if self.checkpoint:
                hidden_states = self.checkpoint(layer, hidden_states, cos, sin, masks[kind], positions)
            else:
                hidden_states = layer(hidden_states, cos, sin, masks[kind], positions)
        paper.enter_layer(None)
        last_hidden_state: PaperTensor = self.norm(hidden_states)
        return last_hidden_state

    def masks(self, b: int, s: int, dtype: str) -> dict[str, PaperTensor | None]:
        """The mask of each kind of layer."""
        of = self.of
        return causal_masks(
            self.paper, b, s, dtype, attention=of.attention, window=of.window, kinds=of.kinds_of_masks()
        )

    def entered(self, inputs_embeds: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """``inputs_embeds`` as it lives on, and what enters the first layer."""
        return inputs_embeds, inputs_embeds

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:
        """Cosines and sines for each kind of layer: the same ones.

        ``longrope`` makes the frequencies of long sequences when it first runs, and keeps them.
        """
        if self.of.long_rope and self.long_inv_freq is None:
            shape = (self.of.rotary_dim // 2,)
            self.long_inv_freq = parameter(
                self.paper, "model.rotary_emb.long_inv_freq", shape, "fp32", Kind.MODULE_BUFFER
            )
        tables = rotary_tables(self.paper, s, self.of.rotary_dim, dtype)
        return dict.fromkeys(self.of.kinds_of_masks(), tables)
