"""The step of an OPT, line by line: learned positions from a running sum, norms before or after, a plain MLP.

Its dropouts run in training, whatever the adapter's.  Source: transformers 5.23.0 ``models/opt/modeling_opt.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation, activation
from qmem.estimator.attention import attend
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask
from qmem.estimator.operations import add, dropped, scale, swap_heads, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.ledger import Kind


class OPTOptions(NamedTuple):
    """What an OPT decides.

    Attributes:
        norm_first: norms stand before attention and MLP, and not after them (the 350m model).
        final_norm: there is a norm after the layers.
        affine: norms have weights and biases.
        projects: the embedding is narrower than the hidden states.
        dropout, attention_dropout: probabilities.
    """

    n_heads: int
    norm_first: bool
    final_norm: bool
    affine: bool
    projects: bool
    dropout: float
    attention_dropout: float
    activation: Activation
    attention: str


def build(parts: Parts) -> CausalLM:
    """An OPT."""
    config = parts.config
    if config["layerdrop"]:
        raise UnsupportedError("layerdrop, which leaves out layers at random, is not modelled yet")
    norm_first = config["do_layer_norm_before"]
    of = OPTOptions(
        n_heads=config["num_attention_heads"],
        norm_first=norm_first,
        final_norm=norm_first and not config["_remove_final_layer_norm"],
        affine=config["layer_norm_elementwise_affine"],
        projects=config["word_embed_proj_dim"] != config["hidden_size"],
        dropout=config["dropout"],
        attention_dropout=config["attention_dropout"],
        activation=activation(config["activation_function"]),
        attention=parts.attention,
    )
    layers = [Layer(parts.paper, of, _layer_modules(parts, of, index)) for index in range(parts.n_layers)]
    return CausalLM(Decoder(parts, of, layers), parts.head())


def _norm(parts: Parts, of: OPTOptions, module: str) -> Module:
    return parts.layer_norm(module, module.rpartition(".")[2], weight=of.affine, bias=of.affine)


def _layer_modules(parts: Parts, of: OPTOptions, index: int) -> dict[str, Module]:
    modules = parts.layer_linears(index)
    for norm in ("self_attn_layer_norm", "final_layer_norm"):
        modules[norm] = _norm(parts, of, f"model.decoder.layers.{index}.{norm}")
    return modules


class Attention(Module):
    """``OPTAttention``: queries are scaled before attention, and once more by 1 in eager attention."""

    def __init__(self, paper: Paper, of: OPTOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "self_attn"))
        self.of = of
        self.q_proj, self.k_proj = modules["self_attn.q_proj"], modules["self_attn.k_proj"]
        self.v_proj, self.out_proj = modules["self_attn.v_proj"], modules["self_attn.out_proj"]

    def forward(self, hidden_states: PaperTensor, mask: PaperTensor | None) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, attend, project.  Eager attention also returns its weights."""
        of = self.of
        b, s, width = hidden_states.shape
        query_states = scale(self.q_proj(hidden_states))
        query_states = _heads(query_states, of.n_heads)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        key_states = _heads(key_states, of.n_heads)
        value_states = _heads(value_states, of.n_heads)
        attn_output, attn_weights = attend(
            query_states, key_states, value_states, mask, attention=of.attention, drop=of.attention_dropout
        )
        attn_output = view(attn_output, (b, s, width))
        attn_output = self.out_proj(attn_output)
        return attn_output, attn_weights


def _heads(x: PaperTensor, n_heads: int) -> PaperTensor:
    b, s, width = x.shape
    return swap_heads(view(x, (b, s, n_heads, width // n_heads)))


class Layer(Module):
    """``OPTDecoderLayer``."""

    def __init__(self, paper: Paper, of: OPTOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "decoder layer"))
        self.of = of
        self.self_attn = Attention(paper, of, modules)
        self.self_attn_layer_norm, self.final_layer_norm = modules["self_attn_layer_norm"], modules["final_layer_norm"]
        self.fc1, self.fc2 = modules["fc1"], modules["fc2"]

    def forward(self, hidden_states: PaperTensor, mask: PaperTensor | None, _positions: PaperTensor) -> PaperTensor:
        """Attention, then the MLP over all tokens as rows, each with its residual and its norm before or after."""
        of = self.of
        residual = hidden_states
        if of.norm_first:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, mask)
        hidden_states = dropped(hidden_states, of.dropout)
        hidden_states = add(residual, hidden_states)
        if not of.norm_first:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        b, s, width = hidden_states.shape
        hidden_states = view(hidden_states, (b * s, width))
        residual = hidden_states
        if of.norm_first:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.fc1(hidden_states)
        hidden_states = of.activation(hidden_states)
        hidden_states = self.fc2(hidden_states)
        hidden_states = dropped(hidden_states, of.dropout)
        hidden_states = view(add(residual, hidden_states), (b, s, width))
        if not of.norm_first:
            hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states


class Decoder(Module):
    """``OPTDecoder``: embeddings, projected to the hidden size where they are narrower, mask, layers, norm."""

    def __init__(self, parts: Parts, of: OPTOptions, layers: list[Layer]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.layers = of, layers
        self.embed_tokens = parts.embedding()
        self.embed_positions = parts.position_embedding("model.decoder.embed_positions")
        self.project_in, self.project_out = (
            parts.linear(f"model.decoder.{name}", name) if of.projects else None
            for name in ("project_in", "project_out")
        )
        self.final_layer_norm = _norm(parts, of, "model.decoder.final_layer_norm") if of.final_norm else None
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  The embeddings are locals and live until this returns."""
        paper, of = self.paper, self.of
        inputs_embeds = self.embed_tokens(input_ids)
        b, s, _ = inputs_embeds.shape
        ones, positions = _positions(paper, b, s)  # noqa: RUF059 - the local lives to the end of the frame
        mask = causal_mask(paper, b, s, inputs_embeds.dtype, attention=of.attention, knows_positions=False)
        pos_embeds = self._embedded(positions)
        if self.project_in:
            inputs_embeds = self.project_in(inputs_embeds)
        hidden_states = add(inputs_embeds, pos_embeds)
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            if self.checkpoint:
                hidden_states = self.checkpoint(layer, hidden_states, mask, positions)
            else:
                hidden_states = layer(hidden_states, mask, positions)
        paper.enter_layer(None)
        if self.final_layer_norm:
            hidden_states = self.final_layer_norm(hidden_states)
        if self.project_out:
            hidden_states = self.project_out(hidden_states)
        return hidden_states

    def _embedded(self, positions: PaperTensor) -> PaperTensor:
        """``OPTLearnedPositionalEmbedding``: two rows stand before the first position."""
        self.paper.rule = "position ids"
        offset = empty(self.paper, positions.shape, "int64")
        embedded: PaperTensor = self.embed_positions(offset)
        return embedded


def _positions(paper: Paper, b: int, s: int) -> tuple[PaperTensor, PaperTensor]:
    """A mask of ones in fp32, and ``(cumsum(ones) * ones - 1).long()``."""
    paper.rule = "position ids"
    ones = empty(paper, (b, s), "fp32")
    running = empty(paper, (b, s), "fp32")
    product = empty(paper, (b, s), "fp32")
    shifted = empty(paper, (b, s), "fp32")
    del product
    positions = empty(paper, (b, s), "int64")
    del shifted, running
    return ones, positions
