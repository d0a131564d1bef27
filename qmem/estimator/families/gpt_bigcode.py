"""The step of a GPTBigCode (SantaCoder, StarCoder), line by line: a GPT-2 whose heads may share a key and a value.

Its dropouts run in training, whatever the adapter's.
Source: transformers 5.23.0 ``models/gpt_bigcode/modeling_gpt_bigcode.py``.
"""

from collections.abc import Mapping

from qmem.estimator.attention import attend
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families import gpt_bigcode_older
from qmem.estimator.families.gpt2 import Block, GPT2Options, block_modules, options
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask, position_ids
from qmem.estimator.operations import add, dropped, swap_heads, view
from qmem.estimator.paper import NEWEST, Module, Paper, PaperTensor, Role
from qmem.estimator.slicing import split
from qmem.ledger import Kind

Heads = tuple[PaperTensor, PaperTensor, PaperTensor]
"""Queries, keys and values, ``[b, heads, s, head_dim]``."""


def build(parts: Parts) -> CausalLM:
    """A GPTBigCode."""
    if parts.paper.older != NEWEST:
        return gpt_bigcode_older.build(parts)
    of = options(parts)
    blocks = [_block(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(Decoder(parts, of, blocks), parts.head())


def _block(parts: Parts, of: GPT2Options, index: int) -> Block:
    modules = block_modules(parts, index)
    attn = Attention(parts.paper, of, modules, multi_query=parts.config["multi_query"])
    return Block(parts.paper, of, modules, attn)


class Attention(Module):
    """``GPTBigCodeAttention``."""

    def __init__(self, paper: Paper, of: GPT2Options, modules: Mapping[str, Module], *, multi_query: bool) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "attn"))
        self.of, self.multi_query = of, multi_query
        self.c_attn, self.c_proj = modules["attn.c_attn"], modules["attn.c_proj"]

    def forward(self, hidden_states: PaperTensor, mask: PaperTensor | None) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, attend, project.  Eager attention also returns its weights."""
        of = self.of
        b, s, width = hidden_states.shape
        query, key, value = self._shared(hidden_states) if self.multi_query else self._own(hidden_states)
        attn_output, attn_weights = attend(query, key, value, mask, attention=of.attention, drop=of.attn_pdrop)
        attn_output = view(attn_output, (b, s, width))
        attn_output = self.c_proj(attn_output)
        attn_output = dropped(attn_output, of.resid_pdrop)
        return attn_output, attn_weights

    def _shared(self, hidden_states: PaperTensor) -> Heads:
        """One key and one value for all heads; all three are parts of one tensor."""
        n_heads = self.of.n_heads
        b, s, width = hidden_states.shape
        head_dim = width // n_heads
        query, key, value = split(self.c_attn(hidden_states), (width, head_dim, head_dim))
        key, value = (view(x, (b, 1, s, head_dim)) for x in (key, value))
        query = swap_heads(view(query, (b, s, n_heads, head_dim)))
        return query, key, value

    def _own(self, hidden_states: PaperTensor) -> Heads:
        """A key and a value for each head, beside its query."""
        n_heads = self.of.n_heads
        b, s, width = hidden_states.shape
        head_dim = width // n_heads
        fused = swap_heads(view(self.c_attn(hidden_states), (b, s, n_heads, 3 * head_dim)))
        query, key, value = split(fused, (head_dim,) * 3)
        return query, key, value


class Decoder(Module):
    """``GPTBigCodeModel``: token embedding, mask, position embedding, blocks, norm."""

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
        mask = causal_mask(paper, b, s, inputs_embeds.dtype, attention=of.attention)
        position_embeds = self.wpe(positions)
        hidden_states = add(inputs_embeds, position_embeds)
        hidden_states = dropped(hidden_states, of.embd_pdrop)
        for index, block in enumerate(self.blocks):
            paper.enter_layer(index)
            if self.checkpoint:
                hidden_states = self.checkpoint(block, hidden_states, mask)
            else:
                hidden_states = block(hidden_states, mask)
        paper.enter_layer(None)
        hidden_states = self.ln_f(hidden_states)
        return view(hidden_states, (b, s, width))
