"""The step of a Falcon, line by line: one projection for queries, keys and values, keys shared by heads.

Positions are rotary, or linear biases (ALiBi) that the mask takes in.
Its own call of sdpa gets a mask always.  Source: transformers 5.23.0 ``models/falcon/modeling_falcon.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.estimator.activations import Activation, activation
from qmem.estimator.alibi import alibi_biases, alibi_mask
from qmem.estimator.attention import repeat_kv, softmax, torch_sdpa
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask, position_ids
from qmem.estimator.operations import (
    add,
    add_in_place,
    batched_matmul,
    cast_for_matmul,
    contiguous,
    dropped,
    scale_in_place,
    swap_heads,
    to,
    view,
)
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
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
        alibi: positions are linear biases.
        attention_dropout, hidden_dropout: probabilities.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    grouped: bool
    parallel: bool
    norms: tuple[str, ...]
    alibi: bool
    attention_dropout: float
    hidden_dropout: float
    activation: Activation
    attention: str


def build(parts: Parts) -> CausalLM:
    """A Falcon."""
    config = parts.config
    n_heads, grouped = config["num_attention_heads"], config["new_decoder_architecture"]
    shared = config["multi_query"] and not grouped
    of = FalconOptions(
        n_heads=n_heads,
        n_kv_heads=1 if shared else config["num_kv_heads"],
        head_dim=config["hidden_size"] // n_heads,
        grouped=grouped,
        parallel=config["parallel_attn"],
        norms=_norm_names(parts),
        alibi=config["alibi"],
        attention_dropout=config["attention_dropout"],
        hidden_dropout=config["hidden_dropout"],
        activation=activation(config["activation"]),
        attention=parts.attention,
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
    """``FalconAttention``: its dropout runs with ALiBi only."""

    def __init__(self, paper: Paper, of: FalconOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "self_attention"))
        self.of = of
        self.query_key_value, self.dense = modules["self_attention.query_key_value"], modules["self_attention.dense"]

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor,
        alibi: PaperTensor | None,
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, rotate, attend, project.  Eager attention also returns its weights."""
        fused_qkv = self.query_key_value(hidden_states)
        query_layer, key_layer, value_layer = self._split_heads(fused_qkv)
        query_layer = _heads_first(query_layer)
        key_layer = _heads_first(key_layer)
        value_layer = _heads_first(value_layer)
        if alibi is None:
            query_layer, key_layer = apply_rotary(query_layer, key_layer, cos, sin)
        if self.of.attention == "eager":
            return self._eager(query_layer, key_layer, value_layer, mask, alibi, hidden_states.dtype)
        drop = 0.0 if alibi is None else self.of.attention_dropout
        attn_output = torch_sdpa(query_layer, key_layer, value_layer, mask, drop=drop)
        attn_output = _merged(attn_output)
        attn_output = self.dense(attn_output)
        return attn_output, None

    def _eager(
        self,
        q: PaperTensor,
        k: PaperTensor,
        v: PaperTensor,
        mask: PaperTensor,
        alibi: PaperTensor | None,
        dtype: str,
    ) -> tuple[PaperTensor, PaperTensor]:
        """The weights in the dtype of what the projection got; with ALiBi all that leads to them lives on."""
        if alibi is None:
            attention_scores = scale_in_place(_product(q, k, transpose_b=True))
            attention_probs = attention_scores = _softmax_in(add(attention_scores, mask), dtype)
        else:
            matmul_result = _product(q, k, transpose_b=True)
            attention_scores = to(matmul_result, "fp32")
            attention_logits = scale_in_place(add(attention_scores, alibi))
            attention_probs = _softmax_in(add(attention_logits, mask), dtype)
            attention_probs = dropped(attention_probs, self.of.attention_dropout)
        attn_output = _product(attention_probs, v, transpose_b=False)
        attn_output = _merged(attn_output)
        attn_output = self.dense(attn_output)
        return attn_output, attention_probs

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


def _softmax_in(x: PaperTensor, dtype: str) -> PaperTensor:
    """``F.softmax(x, dtype=dtype)``, which holds ``x`` until it returns."""
    return softmax(to(x, dtype))


def _product(a: PaperTensor, b: PaperTensor, *, transpose_b: bool) -> PaperTensor:
    """``a @ b``, where a single head of ``b`` may serve all: it is expanded after autocast's casts, which live on."""
    b = cast_for_matmul(b)
    a = cast_for_matmul(a)
    return batched_matmul(a, repeat_kv(b, a.shape[1]), transpose_b=transpose_b)


def _merged(attn_output: PaperTensor) -> PaperTensor:
    """Heads side by side: a copy where they lie one after the other."""
    b, n_heads, s, head_dim = attn_output.shape
    attn_output = swap_heads(attn_output)
    attn_output = contiguous(attn_output) if attn_output.swapped else attn_output
    return view(attn_output, (b, s, n_heads * head_dim))


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
        mask: PaperTensor,
        _positions: PaperTensor,
        alibi: PaperTensor | None,
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Attention and MLP, side by side (with a norm each, or one for both) or one after the other."""
        of, norms = self.of, self.norms
        residual = hidden_states
        if "ln_attn" in norms:
            attention_layernorm_out = norms["ln_attn"](hidden_states)
            mlp_layernorm_out = norms["ln_mlp"](hidden_states)
        else:
            attention_layernorm_out = norms["input_layernorm"](hidden_states)
        attention_output, attn_weights = self.self_attention(attention_layernorm_out, cos, sin, mask, alibi)
        if not of.parallel:
            residual = _dropout_add(attention_output, residual, of.attention_dropout)
            mlp_layernorm_out = norms["post_attention_layernorm"](residual)
        elif "ln_mlp" not in norms:
            mlp_layernorm_out = attention_layernorm_out
        mlp_output = self.mlp(mlp_layernorm_out)
        if of.parallel:
            mlp_output = add_in_place(mlp_output, attention_output)
        output = _dropout_add(mlp_output, residual, of.hidden_dropout)
        return output, attn_weights


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
        """The last hidden state.  The weights of a layer live until the next's are there."""
        paper = self.paper
        inputs_embeds = self.word_embeddings(input_ids)
        b, s, _ = inputs_embeds.shape
        dtype = inputs_embeds.dtype
        alibi = None
        if self.of.alibi:
            paper.rule = "given mask"
            attention_mask = paper.attention_mask or empty(paper, (b, s), "int64")
            alibi = alibi_biases(attention_mask, self.of.n_heads, dtype)
        positions = position_ids(paper, s)
        mask = causal_mask(paper, b, s, dtype, attention=self.of.attention, knows_positions=False, always=True)
        assert mask is not None, "a Falcon asks for a mask always"
        if alibi is not None:
            mask = alibi_mask(mask, alibi)
        hidden_states = inputs_embeds
        cos, sin = rotary_tables(paper, s, self.of.head_dim, dtype)
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            outputs: tuple[PaperTensor, PaperTensor | None]
            if self.checkpoint:
                outputs = self.checkpoint(layer, hidden_states, cos, sin, mask, positions, alibi)
            else:
                outputs = layer(hidden_states, cos, sin, mask, positions, alibi)
            hidden_states = outputs[0]
        paper.enter_layer(None)
        last_hidden_state: PaperTensor = self.ln_f(hidden_states)
        return last_hidden_state
