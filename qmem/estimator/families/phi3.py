"""The step of a Phi-3 or Phi-4: a Llama's, with one linear for queries, keys and values and one for gate and up.

Rotary positions may cover a part of each head.  Source: transformers 5.23.0 ``models/phi3/modeling_phi3.py``.
"""

from collections.abc import Mapping

from qmem.estimator.activations import Activation
from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.operations import add, dropped, mul
from qmem.estimator.paper import Module, Paper, PaperTensor, Role
from qmem.estimator.rotary import rotated
from qmem.estimator.slicing import cat_last, part, split
from qmem.ledger import Kind

LONG_ROPES = ("longrope", "su", "yarn")
"""What Phi-3's config class reads as longrope (``configuration_phi3.py``)."""


def build(parts: Parts) -> CausalLM:
    """A Llama of Phi-3's parts."""
    config = parts.config
    of = llama.options(parts)
    rotary_dim = int(of.head_dim * config["partial_rotary_factor"])
    of = of._replace(
        window=config["sliding_window"],
        rotary_dim=rotary_dim,
        residual_dropout=config["resid_pdrop"],
        long_rope=config["rope_type"] in LONG_ROPES,
    )
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers), parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> "DecoderLayer":
    modules = llama.layer_modules(parts, index, *llama.PRE_NORMS)
    # The layer drops, not its attention.
    attention = Attention(parts.paper, of._replace(residual_dropout=0.0), modules)
    return DecoderLayer(parts.paper, of, modules, attention, FusedMLP(parts.paper, modules, of.activation))


class Attention(llama.Attention):
    """``Phi3Attention``."""

    def heads(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """Three slices of one projection."""
        of = self.of
        qkv = self.projections["self_attn.qkv_proj"](hidden_states)
        query_states = part(qkv, of.n_heads * of.head_dim)
        key_states = part(qkv, of.n_kv_heads * of.head_dim)
        value_states = part(qkv, of.n_kv_heads * of.head_dim)
        return self.cut(query_states, key_states, value_states)

    def rotated(
        self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """``apply_rotary_pos_emb``: the rotated part and the rest, joined even where nothing is left."""
        dim = self.of.rotary_dim
        q_rot, q_pass = part(q, dim), part(q, q.shape[-1] - dim)
        k_rot, k_pass = part(k, dim), part(k, k.shape[-1] - dim)
        q_embed = cat_last(rotated(q_rot, cos, sin), q_pass)
        k_embed = cat_last(rotated(k_rot, cos, sin), k_pass)
        return q_embed, k_embed


class FusedMLP(Module):
    """``Phi3MLP``, ``GlmMLP``: ``down(up * act(gate))``, with gate and up from one linear."""

    def __init__(self, paper: Paper, modules: Mapping[str, Module], act_fn: Activation) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.gate_up_proj, self.down_proj = modules["mlp.gate_up_proj"], modules["mlp.down_proj"]
        self.activation_fn = act_fn

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """Gate and up are views of one tensor, which both keep alive."""
        up_states = self.gate_up_proj(hidden_states)
        gate, up_states = split(up_states, (up_states.shape[-1] // 2,) * 2)
        up_states = mul(up_states, self.activation_fn(gate))
        down_proj: PaperTensor = self.down_proj(up_states)
        return down_proj


class DecoderLayer(llama.DecoderLayer):
    """``Phi3DecoderLayer``: attention and MLP are dropped before they join the residual."""

    def joined(self, residual: PaperTensor, hidden_states: PaperTensor) -> PaperTensor:
        """``residual + dropout(hidden_states)``."""
        return add(residual, dropped(hidden_states, self.of.residual_dropout))
