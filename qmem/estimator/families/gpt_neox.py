"""The step of a GPT-NeoX, line by line: attention beside the MLP, rotary positions on a part of each head.

Source: transformers 5.23.0 ``models/gpt_neox/modeling_gpt_neox.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.estimator.activations import Activation, activation
from qmem.estimator.attention import attend
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask, position_ids
from qmem.estimator.operations import add, dropped, swap_heads, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role
from qmem.estimator.rotary import apply_rotary, rotary_tables
from qmem.estimator.slicing import cat_last, part, split
from qmem.ledger import Kind


class GPTNeoXOptions(NamedTuple):
    """What a GPT-NeoX decides.

    Attributes:
        n_heads, head_dim, rotary_dim: the shapes of attention.
        parallel: attention and MLP both start from the layer's input.
        hidden_dropout, attention_dropout: probabilities.
    """

    n_heads: int
    head_dim: int
    rotary_dim: int
    parallel: bool
    hidden_dropout: float
    attention_dropout: float
    activation: Activation
    attention: str


def build(parts: Parts) -> CausalLM:
    """A GPT-NeoX."""
    config = parts.config
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    of = GPTNeoXOptions(
        n_heads=config["num_attention_heads"],
        head_dim=head_dim,
        rotary_dim=int(head_dim * config["partial_rotary_factor"]),
        parallel=config["use_parallel_residual"],
        hidden_dropout=config["hidden_dropout"],
        attention_dropout=config["attention_dropout"],
        activation=activation(config["hidden_act"]),
        attention=parts.attention,
    )
    layers = [Layer(parts.paper, of, _layer_modules(parts, index)) for index in range(parts.n_layers)]
    return CausalLM(Decoder(parts, of, layers), parts.head())


def _layer_modules(parts: Parts, index: int) -> dict[str, Module]:
    modules = parts.layer_linears(index)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        modules[norm] = parts.layer_norm(f"gpt_neox.layers.{index}.{norm}", norm)
    return modules


class Attention(Module):
    """``GPTNeoXAttention``."""

    def __init__(self, paper: Paper, of: GPTNeoXOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "attention"))
        self.of = of
        self.query_key_value, self.dense = modules["attention.query_key_value"], modules["attention.dense"]

    def forward(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor, mask: PaperTensor | None
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, rotate, attend, project.  Eager attention also returns its weights."""
        of = self.of
        b, s, width = hidden_states.shape
        qkv = swap_heads(view(self.query_key_value(hidden_states), (b, s, of.n_heads, 3 * of.head_dim)))
        query_states, key_states, value_states = split(qkv, (of.head_dim,) * 3)
        query_states, key_states = apply_partial_rotary(query_states, key_states, cos, sin, of.rotary_dim)
        attn_output, attn_weights = attend(
            query_states, key_states, value_states, mask, attention=of.attention, drop=of.attention_dropout
        )
        attn_output = view(attn_output, (b, s, width))
        attn_output = self.dense(attn_output)
        return attn_output, attn_weights


def apply_partial_rotary(
    q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor, rotary_dim: int
) -> tuple[PaperTensor, PaperTensor]:
    """``apply_rotary_pos_emb`` on the first ``rotary_dim`` elements of each head; the rest is joined to them."""
    q_rot, q_pass = part(q, rotary_dim), part(q, q.shape[-1] - rotary_dim)
    k_rot, k_pass = part(k, rotary_dim), part(k, k.shape[-1] - rotary_dim)
    q_embed, k_embed = apply_rotary(q_rot, k_rot, cos, sin)
    q_embed = cat_last(q_embed, q_pass)
    k_embed = cat_last(k_embed, k_pass)
    return q_embed, k_embed


class MLP(Module):
    """``GPTNeoXMLP``."""

    def __init__(self, paper: Paper, of: GPTNeoXOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.activation = of.activation
        self.dense_h_to_4h, self.dense_4h_to_h = modules["mlp.dense_h_to_4h"], modules["mlp.dense_4h_to_h"]

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``dense_4h_to_h(act(dense_h_to_4h(x)))``."""
        hidden_states = self.dense_h_to_4h(hidden_states)
        hidden_states = self.activation(hidden_states)
        hidden_states = self.dense_4h_to_h(hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Layer(Module):
    """``GPTNeoXLayer``."""

    def __init__(self, paper: Paper, of: GPTNeoXOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "layer"))
        self.of = of
        self.input_layernorm = modules["input_layernorm"]
        self.post_attention_layernorm = modules["post_attention_layernorm"]
        self.attention, self.mlp = Attention(paper, of, modules), MLP(paper, of, modules)

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and MLP, side by side or one after the other."""
        of = self.of
        attn_output, _ = self.attention(self.input_layernorm(hidden_states), cos, sin, mask)
        attn_output = dropped(attn_output, of.hidden_dropout)
        if of.parallel:
            mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
            mlp_output = dropped(mlp_output, of.hidden_dropout)
            hidden_states = add(add(mlp_output, attn_output), hidden_states)
        else:
            attn_output = add(attn_output, hidden_states)
            mlp_output = self.mlp(self.post_attention_layernorm(attn_output))
            mlp_output = dropped(mlp_output, of.hidden_dropout)
            hidden_states = add(mlp_output, attn_output)
        return hidden_states


class Decoder(Module):
    """``GPTNeoXModel``: embedding, mask, rotary tables, layers, norm."""

    def __init__(self, parts: Parts, of: GPTNeoXOptions, layers: list[Layer]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.layers = of, layers
        self.embedding = parts.embedding()
        self.final_layer_norm = parts.layer_norm("gpt_neox.final_layer_norm", "norm")
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  ``inputs_embeds`` is a local and lives until this returns."""
        paper, of = self.paper, self.of
        inputs_embeds = self.embedding(input_ids)
        b, s, _ = inputs_embeds.shape
        positions = position_ids(paper, s)
        mask = causal_mask(paper, b, s, inputs_embeds.dtype, attention=of.attention)
        hidden_states = dropped(inputs_embeds, of.hidden_dropout)
        cos, sin = rotary_tables(paper, s, of.rotary_dim, hidden_states.dtype)
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            if self.checkpoint:
                hidden_states = self.checkpoint(layer, hidden_states, cos, sin, mask, positions)
            else:
                hidden_states = layer(hidden_states, cos, sin, mask, positions)
        paper.enter_layer(None)
        last_hidden_state: PaperTensor = self.final_layer_norm(hidden_states)
        return last_hidden_state
