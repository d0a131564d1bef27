"""The step of a GPT-2, line by line: learned positions, one projection for queries, keys and values, a plain MLP.

Its dropouts run in training, whatever the adapter's.  Source: transformers 5.23.0 ``models/gpt2/modeling_gpt2.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation, activation
from qmem.estimator.attention import attend
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask, position_ids
from qmem.estimator.operations import add, dropped, swap_heads, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role
from qmem.estimator.slicing import split
from qmem.ledger import Kind


class GPT2Options(NamedTuple):
    """What a GPT-2 decides: heads, the probabilities of its dropouts, the activation, the attention."""

    n_heads: int
    embd_pdrop: float
    resid_pdrop: float
    attn_pdrop: float
    activation: Activation
    attention: str


def build(parts: Parts) -> CausalLM:
    """A GPT-2."""
    if parts.config["reorder_and_upcast_attn"] and parts.attention == "eager":
        raise UnsupportedError("reorder_and_upcast_attn with eager attention is not modelled yet", hint="use sdpa")
    of = options(parts)
    blocks = [Block(parts.paper, of, block_modules(parts, index)) for index in range(parts.n_layers)]
    return CausalLM(Decoder(parts, of, blocks), parts.head())


def options(parts: Parts) -> GPT2Options:
    """The options of a GPT-2's config."""
    config = parts.config
    return GPT2Options(
        config["n_head"], config["embd_pdrop"], config["resid_pdrop"], config["attn_pdrop"],
        activation(config["activation_function"]), parts.attention,
    )  # fmt: skip


def block_modules(parts: Parts, index: int) -> dict[str, Module]:
    """The projections and the norms of a block by their names within it."""
    modules = parts.layer_linears(index)
    for norm in ("ln_1", "ln_2"):
        modules[norm] = parts.layer_norm(f"transformer.h.{index}.{norm}", norm)
    return modules


class Attention(Module):
    """``GPT2Attention``."""

    def __init__(self, paper: Paper, of: GPT2Options, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "attn"))
        self.of = of
        self.c_attn, self.c_proj = modules["attn.c_attn"], modules["attn.c_proj"]

    def forward(self, hidden_states: PaperTensor, mask: PaperTensor | None) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, attend, project.  Eager attention also returns its weights."""
        of = self.of
        b, s, width = hidden_states.shape
        query_states, key_states, value_states = split(self.c_attn(hidden_states), (width,) * 3)
        key_states = _heads(key_states, of.n_heads)
        value_states = _heads(value_states, of.n_heads)
        query_states = _heads(query_states, of.n_heads)
        attn_output, attn_weights = attend(
            query_states, key_states, value_states, mask, attention=of.attention, drop=of.attn_pdrop, fp32=False
        )
        attn_output = view(attn_output, (b, s, width))
        attn_output = self.c_proj(attn_output)
        attn_output = dropped(attn_output, of.resid_pdrop)
        return attn_output, attn_weights


def _heads(x: PaperTensor, n_heads: int) -> PaperTensor:
    b, s, width = x.shape
    return swap_heads(view(x, (b, s, n_heads, width // n_heads)))


class MLP(Module):
    """``GPT2MLP``."""

    def __init__(self, paper: Paper, of: GPT2Options, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.of = of
        self.c_fc, self.c_proj = modules["mlp.c_fc"], modules["mlp.c_proj"]

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``dropout(c_proj(act(c_fc(x))))``."""
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.of.activation(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        return dropped(hidden_states, self.of.resid_pdrop)


class Block(Module):
    """``GPT2Block``; another attention may stand in the place of GPT-2's."""

    def __init__(
        self, paper: Paper, of: GPT2Options, modules: Mapping[str, Module], attn: Module | None = None
    ) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "block"))
        self.ln_1, self.ln_2 = modules["ln_1"], modules["ln_2"]
        self.attn, self.mlp = attn or Attention(paper, of, modules), MLP(paper, of, modules)

    def forward(
        self, hidden_states: PaperTensor, mask: PaperTensor | None, _positions: PaperTensor | None = None
    ) -> PaperTensor:
        """Attention and MLP, each with its residual; ``attn_output`` lives until the block returns."""
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_output, _ = self.attn(hidden_states, mask)
        hidden_states = add(attn_output, residual)
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = add(residual, feed_forward_hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Decoder(Module):
    """``GPT2Model``: token and position embeddings, mask, blocks, norm."""

    def __init__(self, parts: Parts, of: GPT2Options, blocks: list[Block]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.blocks = of, blocks
        self.wte, self.wpe = parts.embedding(), parts.position_embedding("transformer.wpe")
        self.ln_f = parts.layer_norm("transformer.ln_f", "norm")
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  Both embeddings are locals and live until this returns."""
        paper, of = self.paper, self.of
        inputs_embeds = self.wte(input_ids)
        b, s, width = inputs_embeds.shape
        positions = position_ids(paper, s)
        position_embeds = self.wpe(positions)
        hidden_states = add(inputs_embeds, position_embeds)
        mask = causal_mask(paper, b, s, inputs_embeds.dtype, attention=of.attention)
        hidden_states = dropped(hidden_states, of.embd_pdrop)
        for index, block in enumerate(self.blocks):
            paper.enter_layer(index)
            if self.checkpoint:
                hidden_states = self.checkpoint(block, hidden_states, mask, positions)
            else:
                hidden_states = block(hidden_states, mask, positions)
        paper.enter_layer(None)
        hidden_states = self.ln_f(hidden_states)
        return view(hidden_states, (b, s, width))
