"""The step of a GPT-J, line by line: eager attention with rotary positions, beside a plain MLP after one norm.

transformers runs it with eager attention or with flash kernels that are not modelled, never with sdpa.  A layer
returns its attention weights, and its dropouts run in training, whatever the adapter's.
Source: transformers 5.23.0 ``models/gptj/modeling_gptj.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation, activation
from qmem.estimator.attention import softmax, softmax_fp32
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import causal_mask, position_ids
from qmem.estimator.operations import add, batched_matmul, contiguous, dropped, scale, swap_heads, to, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.rotary import rotated
from qmem.estimator.slicing import cat_last, part
from qmem.ledger import Kind


class GPTJOptions(NamedTuple):
    """What a GPT-J decides: heads, how much of each is rotated, the positions of its tables, dropouts, activation."""

    n_heads: int
    rotary_dim: int
    n_positions: int
    embd_pdrop: float
    resid_pdrop: float
    attn_pdrop: float
    activation: Activation


def build(parts: Parts) -> CausalLM:
    """A GPT-J, under eager attention."""
    config = parts.config
    if parts.attention != "eager":
        raise UnsupportedError(f"transformers does not run gptj with {parts.attention}", hint="use --attention eager")
    of = GPTJOptions(
        config["n_head"], config["rotary_dim"], config["n_positions"], config["embd_pdrop"], config["resid_pdrop"],
        config["attn_pdrop"], activation(config["activation_function"]),
    )  # fmt: skip
    blocks = [GPTJBlock(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(Decoder(parts, of, blocks), parts.head())


class Attention(Module):
    """``GPTJAttention``."""

    def __init__(self, paper: Paper, of: GPTJOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "attn"))
        self.of = of
        self.q_proj, self.k_proj = modules["attn.q_proj"], modules["attn.k_proj"]
        self.v_proj, self.out_proj = modules["attn.v_proj"], modules["attn.out_proj"]

    def forward(self, hidden_states: PaperTensor, mask: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """Project, rotate, attend, project.  Tables and halves of keys and queries live until this returns."""
        of = self.of
        b, s, width = hidden_states.shape
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj(hidden_states)
        query = _split_heads(query, of.n_heads)
        key = _split_heads(key, of.n_heads)
        value = swap_heads(_split_heads(value, of.n_heads))
        embed_positions = empty(self.paper, (1, of.n_positions, of.rotary_dim), "fp32")  # noqa: F841 - a local
        repeated_position_ids = empty(self.paper, (1, s, of.rotary_dim), "int64")  # noqa: F841 - a local
        sincos = to(empty(self.paper, (1, s, of.rotary_dim), "fp32"), key.dtype)
        k_rot, k_pass = part(key, of.rotary_dim), part(key, width // of.n_heads - of.rotary_dim)
        q_rot, q_pass = part(query, of.rotary_dim), part(query, width // of.n_heads - of.rotary_dim)
        k_rot = _rotated(k_rot, sincos)
        q_rot = _rotated(q_rot, sincos)
        key = cat_last(k_rot, k_pass)
        query = cat_last(q_rot, q_pass)
        key = swap_heads(key)
        query = swap_heads(query)
        attn_output, attn_weights = _attend(query, key, value, mask, of.attn_pdrop)
        attn_output = contiguous(swap_heads(attn_output))
        attn_output = self.out_proj(view(attn_output, (b, s, width)))
        attn_output = dropped(attn_output, of.resid_pdrop)
        return attn_output, attn_weights


def _split_heads(x: PaperTensor, n_heads: int) -> PaperTensor:
    b, s, width = x.shape
    return view(x, (b, s, n_heads, width // n_heads))


def _rotated(x: PaperTensor, sincos: PaperTensor) -> PaperTensor:
    """``apply_rotary_pos_emb``: every sine and cosine is repeated for the two elements that it turns."""
    _, s, rotary_dim = sincos.shape
    sin = empty(x.paper, (1, s, 1, rotary_dim), sincos.dtype)
    cos = empty(x.paper, (1, s, 1, rotary_dim), sincos.dtype)
    return rotated(x, cos, sin)


def _attend(
    query: PaperTensor, key: PaperTensor, value: PaperTensor, mask: PaperTensor, drop: float
) -> tuple[PaperTensor, PaperTensor]:
    """``_attn``: queries and keys in fp32, which autocast takes back."""
    query = to(query, "fp32")
    key = to(key, "fp32")
    attn_weights = batched_matmul(query, key, transpose_b=True)
    attn_weights = scale(attn_weights)
    attn_weights = add(attn_weights, mask)
    attn_weights = softmax(attn_weights) if query.paper.autocast_dtype is None else softmax_fp32(attn_weights)
    attn_weights = to(attn_weights, value.dtype)
    attn_weights = dropped(attn_weights, drop)
    attn_output = batched_matmul(attn_weights, value, transpose_b=False)
    return attn_output, attn_weights


class MLP(Module):
    """``GPTJMLP``."""

    def __init__(self, paper: Paper, of: GPTJOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.of = of
        self.fc_in, self.fc_out = modules["mlp.fc_in"], modules["mlp.fc_out"]

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``dropout(fc_out(act(fc_in(x))))``."""
        hidden_states = self.fc_in(hidden_states)
        hidden_states = self.of.activation(hidden_states)
        hidden_states = self.fc_out(hidden_states)
        return dropped(hidden_states, self.of.resid_pdrop)


class GPTJBlock(Module):
    """``GPTJBlock``."""

    def __init__(self, parts: Parts, of: GPTJOptions, index: int) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "block"))
        modules = parts.layer_linears(index)
        self.ln_1 = parts.layer_norm(f"transformer.h.{index}.ln_1", "ln_1")
        self.attn, self.mlp = Attention(parts.paper, of, modules), MLP(parts.paper, of, modules)

    def forward(
        self, hidden_states: PaperTensor, mask: PaperTensor, _positions: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """Attention and MLP side by side; the attention weights are returned too."""
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        attn_outputs, attn_weights = self.attn(hidden_states, mask)
        feed_forward_hidden_states = self.mlp(hidden_states)
        hidden_states = add(add(attn_outputs, feed_forward_hidden_states), residual)
        return hidden_states, attn_weights


class Decoder(Module):
    """``GPTJModel``: embedding, mask, blocks, norm."""

    def __init__(self, parts: Parts, of: GPTJOptions, blocks: list[GPTJBlock]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.blocks = of, blocks
        self.wte = parts.embedding()
        self.ln_f = parts.layer_norm("transformer.ln_f", "norm")
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  The weights of a layer live until the next layer's are there."""
        paper = self.paper
        inputs_embeds = self.wte(input_ids)
        b, s, width = inputs_embeds.shape
        positions = position_ids(paper, s)
        mask = causal_mask(paper, b, s, inputs_embeds.dtype, attention="eager")
        hidden_states = dropped(inputs_embeds, self.of.embd_pdrop)
        for index, block in enumerate(self.blocks):
            paper.enter_layer(index)
            if self.checkpoint:
                outputs = self.checkpoint(block, hidden_states, mask, positions)
            else:
                outputs = block(hidden_states, mask, positions)
            hidden_states = outputs[0]
        paper.enter_layer(None)
        hidden_states = self.ln_f(hidden_states)
        return view(hidden_states, (b, s, width))
