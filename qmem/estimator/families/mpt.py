"""The step of an MPT, line by line: eager attention with biases of distance (ALiBi), a plain MLP, no biases.

transformers runs it with eager attention alone.  A layer returns its attention weights.
Source: transformers 5.23.0 ``models/mpt/modeling_mpt.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.errors import UnsupportedError
from qmem.estimator.activations import gelu
from qmem.estimator.attention import softmax
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.gpt_oss import clamp
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask
from qmem.estimator.operations import add, batched_matmul, contiguous, dropped, scale, swap_heads, to, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.routing import masked_fill
from qmem.estimator.slicing import split
from qmem.ledger import Kind


class MptOptions(NamedTuple):
    """What an MPT decides: heads, the longest sequence, the probability of its dropouts, whether it clips."""

    n_heads: int
    max_seq_len: int
    attn_pdrop: float
    clips: bool


def build(parts: Parts) -> CausalLM:
    """An MPT, under eager attention."""
    config = parts.config
    if parts.attention != "eager":
        raise UnsupportedError(f"transformers does not run mpt with {parts.attention}", hint="use --attention eager")
    of = MptOptions(config["n_heads"], config["max_seq_len"], config["attn_pdrop"], config["clip_qkv"] is not None)
    blocks = [MptBlock(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(Decoder(parts, of, blocks), parts.head())


class Attention(Module):
    """``MptAttention``."""

    def __init__(self, paper: Paper, of: MptOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "attn"))
        self.of = of
        self.wqkv, self.out_proj = modules["attn.Wqkv"], modules["attn.out_proj"]

    def forward(
        self, hidden_states: PaperTensor, position_bias: PaperTensor, mask: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """Project, attend, project.  The masked scores live until this returns."""
        of = self.of
        b, s, width = hidden_states.shape
        mixed_qkv = self.wqkv(hidden_states)
        if of.clips:
            mixed_qkv = clamp(mixed_qkv, bounds=2)
        query_states, key_states, value_states = (_heads(x, of.n_heads) for x in split(mixed_qkv, (width,) * 3))
        attention_scores = scale(batched_matmul(query_states, key_states, transpose_b=True))
        attention_scores = add(attention_scores, position_bias)
        attention_scores = masked_fill(attention_scores, mask)
        attn_weights = to(softmax(to(attention_scores, "fp32")), value_states.dtype)
        attn_weights = dropped(attn_weights, of.attn_pdrop)
        context_states = batched_matmul(attn_weights, value_states, transpose_b=False)
        context_states = view(contiguous(swap_heads(context_states)), (b, s, width))
        attn_output = self.out_proj(context_states)
        return attn_output, attn_weights


def _heads(x: PaperTensor, n_heads: int) -> PaperTensor:
    b, s, width = x.shape
    return swap_heads(view(x, (b, s, n_heads, width // n_heads)))


class MLP(Module):
    """``MptMLP``, which adds the residual."""

    def __init__(self, paper: Paper, of: MptOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "ffn"))
        self.of = of
        self.up_proj, self.down_proj = modules["ffn.up_proj"], modules["ffn.down_proj"]

    def forward(self, hidden_states: PaperTensor, residual: PaperTensor) -> PaperTensor:
        """``dropout(down_proj(gelu(up_proj(x)))) + residual``."""
        hidden_states = gelu(self.up_proj(hidden_states))
        intermediate_output = self.down_proj(hidden_states)
        output = dropped(intermediate_output, self.of.attn_pdrop)
        output = add(output, residual)
        return output  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class MptBlock(Module):
    """``MptBlock``."""

    def __init__(self, parts: Parts, of: MptOptions, index: int) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "block"))
        self.of = of
        modules, name = parts.layer_linears(index), f"transformer.blocks.{index}"
        self.norm_1 = parts.layer_norm(f"{name}.norm_1", "norm_1", bias=False)
        self.norm_2 = parts.layer_norm(f"{name}.norm_2", "norm_2", bias=False)
        self.attn, self.ffn = Attention(parts.paper, of, modules), MLP(parts.paper, of, modules)

    def forward(
        self, hidden_states: PaperTensor, position_bias: PaperTensor, mask: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """Attention and MLP, each with its residual; the attention weights are returned too."""
        layernorm_output = self.norm_1(hidden_states)
        residual = hidden_states
        attn_outputs, attn_weights = self.attn(layernorm_output, position_bias, mask)
        hidden_states = add(dropped(attn_outputs, self.of.attn_pdrop), residual)
        layernorm_output = self.norm_2(hidden_states)
        residual = hidden_states
        output = self.ffn(layernorm_output, residual)
        return output, attn_weights


class Decoder(Module):
    """``MptModel``: embedding, biases of distance, mask, blocks, norm."""

    def __init__(self, parts: Parts, of: MptOptions, blocks: list[MptBlock]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.blocks = of, blocks
        self.wte = parts.embedding()
        self.norm_f = parts.layer_norm("transformer.norm_f", "norm", bias=False)
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  The weights of a layer live until the next layer's are there."""
        paper, of = self.paper, self.of
        inputs_embeds = self.wte(input_ids)
        b, s, _ = inputs_embeds.shape
        hidden_states = inputs_embeds
        alibi = alibi_of_keys(paper, of.n_heads, of.max_seq_len)
        mask = causal_mask(paper, b, s, inputs_embeds.dtype, attention="eager", knows_positions=False)
        assert mask is not None, "eager attention always gets a mask"
        mask = to(mask, "bool")
        for index, block in enumerate(self.blocks):
            paper.enter_layer(index)
            if self.checkpoint:
                outputs = self.checkpoint(block, hidden_states, alibi, mask)
            else:
                outputs = block(hidden_states, alibi, mask)
            hidden_states = outputs[0]
        paper.enter_layer(None)
        last_hidden_state: PaperTensor = self.norm_f(hidden_states)
        return last_hidden_state


def alibi_of_keys(paper: Paper, n_heads: int, n_keys: int) -> PaperTensor:
    """``build_mpt_alibi_tensor``: ``[heads, 1, keys]``, the distance from the last key by a slope of each head.

    Slopes are those of a power of two, of which some are chosen where the heads are not one.
    """
    paper.rule = "ALiBi"
    n_slopes = 1 << (n_heads - 1).bit_length()
    distances = empty(paper, (1, 1, 1, n_keys), "int32")
    base = empty(paper, (n_slopes,), "int64")
    base = empty(paper, (n_slopes,), "fp32")
    base = empty(paper, (n_slopes,), "fp32")
    powers = empty(paper, (n_slopes,), "fp32")
    reciprocals = empty(paper, (n_slopes,), "fp32")
    del powers
    slopes = empty(paper, (1, n_slopes, 1, 1), "fp32")
    del reciprocals
    if n_slopes != n_heads:
        slopes = empty(paper, (1, n_slopes, 1, 1), "fp32")
    alibi = empty(paper, (n_heads, 1, n_keys), "fp32")
    del distances, slopes, base
    return alibi
