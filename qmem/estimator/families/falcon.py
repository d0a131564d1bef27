"""The step of a Falcon, line by line: one projection for queries, keys and values, keys shared by heads.

Its own call of sdpa gets a mask always.  Source: transformers 5.23.0 ``models/falcon/modeling_falcon.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation, activation
from qmem.estimator.attention import torch_sdpa
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask, position_ids
from qmem.estimator.operations import add, add_in_place, dropped, swap_heads, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role
from qmem.estimator.rotary import apply_rotary, rotary_tables
from qmem.estimator.slicing import broadcast_heads, heads, one_head, picked_head
from qmem.ledger import Kind

Heads = tuple[PaperTensor, PaperTensor, PaperTensor]
"""Queries, keys and values, ``[b, s, heads, head_dim]``."""


class FalconOptions(NamedTuple):
    """What a Falcon decides.

    Attributes:
        n_heads, n_kv_heads, head_dim: the shapes of attention.
        grouped: the new decoder architecture: keys and values by groups of heads.
        parallel: attention and MLP both start from the layer's input.
        norms: the norms of a layer by their names.
        attention_dropout, hidden_dropout: probabilities.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    grouped: bool
    parallel: bool
    norms: tuple[str, ...]
    attention_dropout: float
    hidden_dropout: float
    activation: Activation


def build(parts: Parts) -> CausalLM:
    """A Falcon with rotary positions, under sdpa."""
    config = parts.config
    if config["alibi"]:
        raise UnsupportedError("the step of a Falcon with ALiBi is not modelled yet")
    if parts.attention != "sdpa":
        raise UnsupportedError("eager attention of a Falcon is not modelled yet", hint="use --attention sdpa")
    n_heads, grouped = config["num_attention_heads"], config["new_decoder_architecture"]
    shared = config["multi_query"] and not grouped
    of = FalconOptions(
        n_heads=n_heads,
        n_kv_heads=1 if shared else config["num_kv_heads"],
        head_dim=config["hidden_size"] // n_heads,
        grouped=grouped,
        parallel=config["parallel_attn"],
        norms=_norm_names(parts),
        attention_dropout=config["attention_dropout"],
        hidden_dropout=config["hidden_dropout"],
        activation=activation(config["activation"]),
    )
    layers = [Layer(parts.paper, of, _layer_modules(parts, of, index)) for index in range(parts.n_layers)]
    return CausalLM(Decoder(parts, of, layers), parts.head())


def _norm_names(parts: Parts) -> tuple[str, ...]:
    first = "transformer.h.0."
    weights = (p for p in parts.architecture.parameters if p.role == "norm" and p.name.endswith(".weight"))
    return tuple(p.module.removeprefix(first) for p in weights if p.name.startswith(first))


def _layer_modules(parts: Parts, of: FalconOptions, index: int) -> dict[str, Module]:
    norms = {norm: parts.layer_norm(f"transformer.h.{index}.{norm}", norm) for norm in of.norms}
    return parts.layer_linears(index) | norms


class Attention(Module):
    """``FalconAttention`` under sdpa, without ALiBi: its dropout does not run there."""

    def __init__(self, paper: Paper, of: FalconOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "self_attention"))
        self.of = of
        self.query_key_value, self.dense = modules["self_attention.query_key_value"], modules["self_attention.dense"]

    def forward(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor, mask: PaperTensor | None
    ) -> PaperTensor:
        """Project, rotate, attend, project."""
        fused_qkv = self.query_key_value(hidden_states)
        query_layer, key_layer, value_layer = self._split_heads(fused_qkv)
        b, s, n_heads, head_dim = query_layer.shape
        query_layer = _heads_first(query_layer)
        key_layer = _heads_first(key_layer)
        value_layer = _heads_first(value_layer)
        query_layer, key_layer = apply_rotary(query_layer, key_layer, cos, sin)
        attn_output = torch_sdpa(query_layer, key_layer, value_layer, mask)
        attn_output = view(swap_heads(attn_output), (b, s, n_heads * head_dim))
        dense: PaperTensor = self.dense(attn_output)
        return dense

    def _split_heads(self, fused_qkv: PaperTensor) -> Heads:
        """Queries, keys and values are parts of one tensor; groups of queries are copied beside their keys."""
        of = self.of
        b, s, _ = fused_qkv.shape
        if of.grouped:
            group = of.n_heads // of.n_kv_heads
            return _grouped(view(fused_qkv, (b, s, of.n_kv_heads, group + 2, of.head_dim)), group)
        if of.n_kv_heads == 1:
            fused_qkv = view(fused_qkv, (b, s, of.n_heads + 2, of.head_dim))
            return heads(fused_qkv, of.n_heads), picked_head(fused_qkv), picked_head(fused_qkv)
        fused_qkv = view(fused_qkv, (b, s, of.n_heads, 3, of.head_dim))
        return one_head(fused_qkv), one_head(fused_qkv), one_head(fused_qkv)


def _grouped(qkv: PaperTensor, group: int) -> Heads:
    query = heads(qkv, group)
    key = picked_head(qkv)
    value = picked_head(qkv)
    query, key, value = (broadcast_heads(x, group) for x in (query, key, value))
    return query, key, value


def _heads_first(x: PaperTensor) -> PaperTensor:
    """``x.transpose(1, 2).reshape(...)`` to the shape that it has."""
    swapped = swap_heads(x)
    return view(swapped, swapped.shape)


class MLP(Module):
    """``FalconMLP``."""

    def __init__(self, paper: Paper, of: FalconOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.activation = of.activation
        self.dense_h_to_4h, self.dense_4h_to_h = modules["mlp.dense_h_to_4h"], modules["mlp.dense_4h_to_h"]

    def forward(self, x: PaperTensor) -> PaperTensor:
        """``dense_4h_to_h(act(dense_h_to_4h(x)))``."""
        x = self.activation(self.dense_h_to_4h(x))
        x = self.dense_4h_to_h(x)
        return x  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Layer(Module):
    """``FalconDecoderLayer``."""

    def __init__(self, paper: Paper, of: FalconOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "decoder layer"))
        self.of = of
        self.norms = {name: modules[name] for name in of.norms}
        self.self_attention, self.mlp = Attention(paper, of, modules), MLP(paper, of, modules)

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and MLP, side by side (with a norm each, or one for both) or one after the other."""
        of, norms = self.of, self.norms
        residual = hidden_states
        if "ln_attn" in norms:
            attention_layernorm_out = norms["ln_attn"](hidden_states)
            mlp_layernorm_out = norms["ln_mlp"](hidden_states)
        else:
            attention_layernorm_out = norms["input_layernorm"](hidden_states)
        attention_output = self.self_attention(attention_layernorm_out, cos, sin, mask)
        if not of.parallel:
            residual = _dropout_add(attention_output, residual, of.attention_dropout)
            mlp_layernorm_out = norms["post_attention_layernorm"](residual)
        elif "ln_mlp" not in norms:
            mlp_layernorm_out = attention_layernorm_out
        mlp_output = self.mlp(mlp_layernorm_out)
        if of.parallel:
            mlp_output = add_in_place(mlp_output, attention_output)
        output = _dropout_add(mlp_output, residual, of.hidden_dropout)
        return output  # noqa: RET504 - the local lives to the end of the frame, as in transformers


def _dropout_add(x: PaperTensor, residual: PaperTensor, probability: float) -> PaperTensor:
    out = dropped(x, probability)
    out = add(residual, out)
    return out  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Decoder(Module):
    """``FalconModel``: embedding, mask, rotary tables, layers, norm."""

    def __init__(self, parts: Parts, of: FalconOptions, layers: list[Layer]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.layers = of, layers
        self.word_embeddings = parts.embedding()
        self.ln_f = parts.layer_norm("transformer.ln_f", "norm")
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  ``inputs_embeds`` is a local and lives until this returns."""
        paper = self.paper
        inputs_embeds = self.word_embeddings(input_ids)
        b, s, _ = inputs_embeds.shape
        positions = position_ids(paper, s)
        dtype = inputs_embeds.dtype
        mask = causal_mask(paper, b, s, dtype, attention="sdpa", knows_positions=False, always=True)
        hidden_states = inputs_embeds
        cos, sin = rotary_tables(paper, s, self.of.head_dim, dtype)
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            if self.checkpoint:
                hidden_states = self.checkpoint(layer, hidden_states, cos, sin, mask, positions)
            else:
                hidden_states = layer(hidden_states, cos, sin, mask, positions)
        paper.enter_layer(None)
        last_hidden_state: PaperTensor = self.ln_f(hidden_states)
        return last_hidden_state
