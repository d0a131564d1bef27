"""The step of a GPTBigCode in transformers 4.48.1: always a mask, keys and values kept for a cache, a loss of its own.

The Trainer leaves the cache on, so every layer returns its keys and values, through checkpointing too.
Source: transformers 4.48.1 ``models/gpt_bigcode/modeling_gpt_bigcode.py`` (``GPTBigCodeSdpaAttention``).
"""

from collections.abc import Mapping

from qmem.estimator.attention import torch_sdpa
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.gpt2 import MLP, GPT2Options, block_modules, options
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.loss import shifted_cross_entropy_loss
from qmem.estimator.masks import additive_mask, counted_positions
from qmem.estimator.operations import add, contiguous, dropped, expanded, swap_heads, view
from qmem.estimator.paper import Module, PaperTensor, Role
from qmem.estimator.slicing import split
from qmem.ledger import Kind

Present = PaperTensor | None
"""The keys and values of a layer, where they are kept."""


def build(parts: Parts) -> CausalLM:
    """A GPTBigCode under older libraries, for sdpa."""
    of = options(parts)
    blocks = [OlderBlock(parts, of, index) for index in range(parts.n_layers)]
    presents: list[PaperTensor] = []
    return CausalLM(
        OlderDecoder(parts, of, blocks, presents),
        parts.head(),
        shifted_cross_entropy_loss,
        others=presents,
        slices_hidden=False,
    )


class OlderAttention(Module):
    """``GPTBigCodeSdpaAttention``."""

    def __init__(self, parts: Parts, of: GPT2Options, modules: Mapping[str, Module]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "attn"))
        self.of, self.multi_query, self.keeps_cache = of, parts.config["multi_query"], parts.under_trainer
        self.c_attn, self.c_proj = modules["attn.c_attn"], modules["attn.c_proj"]

    def forward(self, hidden_states: PaperTensor, mask: PaperTensor) -> tuple[PaperTensor, Present]:
        """Project, attend, project; and the keys and values, which hold the whole first projection."""
        b, s, width = hidden_states.shape
        head_dim = width // self.of.n_heads
        query, key_value = self._projected(hidden_states)
        present = key_value if self.keeps_cache else None
        key, value = split(key_value, (head_dim, head_dim))
        attn_output = self._attend(query, key, value, mask)
        attn_output = view(attn_output, (b, s, width))
        attn_output = self.c_proj(attn_output)
        attn_output = dropped(attn_output, self.of.resid_pdrop)
        return attn_output, present

    def _projected(self, hidden_states: PaperTensor) -> list[PaperTensor]:
        """The queries, and the keys with the values: parts of one tensor."""
        n_heads = self.of.n_heads
        b, s, width = hidden_states.shape
        head_dim = width // n_heads
        fused = self.c_attn(hidden_states)
        if self.multi_query:
            return split(fused, (width, 2 * head_dim))
        return split(swap_heads(view(fused, (b, s, n_heads, 3 * head_dim))), (head_dim, 2 * head_dim))

    def _attend(self, query: PaperTensor, key: PaperTensor, value: PaperTensor, mask: PaperTensor) -> PaperTensor:
        """A shared key is expanded without a copy; heads of their own are copied, as the mask asks for it."""
        n_heads = self.of.n_heads
        if self.multi_query:
            b, s, head_dim = key.shape
            query = swap_heads(view(query, (b, s, n_heads, head_dim)))
            key = expanded(view(key, (b, 1, s, head_dim)), n_heads)
            value = expanded(view(value, (b, 1, s, head_dim)), n_heads)
        else:
            query, key, value = contiguous(query), contiguous(key), contiguous(value)
        return swap_heads(torch_sdpa(query, key, value, mask, drop=self.of.attn_pdrop))


class OlderBlock(Module):
    """``GPTBigCodeBlock``."""

    def __init__(self, parts: Parts, of: GPT2Options, index: int) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "block"))
        modules = block_modules(parts, index)
        self.ln_1, self.ln_2 = modules["ln_1"], modules["ln_2"]
        self.attn, self.mlp = OlderAttention(parts, of, modules), MLP(parts.paper, of, modules)

    def forward(self, hidden_states: PaperTensor, mask: PaperTensor) -> tuple[PaperTensor, Present]:
        """Attention and MLP, each with its residual; ``attn_output`` lives until the block returns."""
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_output, present = self.attn(hidden_states, mask)
        hidden_states = add(attn_output, residual)
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = add(residual, feed_forward_hidden_states)
        return hidden_states, present


class OlderDecoder(Module):
    """``GPTBigCodeModel``: mask, both embeddings, blocks, norm."""

    def __init__(self, parts: Parts, of: GPT2Options, blocks: list[OlderBlock], presents: list[PaperTensor]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.blocks, self.presents = of, blocks, presents
        self.wte, self.wpe = parts.embedding(), parts.position_embedding("transformer.wpe")
        self.ln_f = parts.layer_norm("transformer.ln_f", "norm")
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  Positions, mask and both embeddings are locals and live until this returns."""
        paper, of = self.paper, self.of
        b, s = input_ids.shape
        positions = counted_positions(paper, s)
        mask = additive_mask(paper, b, s, self.wte.weight.dtype)
        inputs_embeds = self.wte(input_ids)
        position_embeds = self.wpe(positions)
        hidden_states = add(inputs_embeds, position_embeds)
        hidden_states = dropped(hidden_states, of.embd_pdrop)
        for index, block in enumerate(self.blocks):
            paper.enter_layer(index)
            hidden_states, present = self._run(block, hidden_states, mask)
            if present is not None:
                self.presents.append(present)
        paper.enter_layer(None)
        hidden_states = self.ln_f(hidden_states)
        return view(hidden_states, (b, s, hidden_states.shape[2]))

    def _run(self, block: OlderBlock, hidden_states: PaperTensor, mask: PaperTensor) -> tuple[PaperTensor, Present]:
        ran: tuple[PaperTensor, Present] = (
            self.checkpoint(block, hidden_states, mask) if self.checkpoint else block(hidden_states, mask)
        )
        return ran
