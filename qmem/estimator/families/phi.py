"""The step of a Phi (1, 1.5, 2): attention beside the MLP, both from one layer norm; biases in the head too.

Source: transformers 5.23.0 ``models/phi/modeling_phi.py``.
"""

from collections.abc import Mapping

from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.families.starcoder2 import layer_norm
from qmem.estimator.operations import add, dropped
from qmem.estimator.paper import Module, Paper, PaperTensor, Role
from qmem.estimator.rotary import apply_rotary
from qmem.estimator.slicing import cat_last, part
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """A Llama of Phi's parts."""
    config = parts.config
    of = llama.options(parts)
    rotary_dim = int(of.head_dim * config["partial_rotary_factor"])
    of = of._replace(rotary_dim=rotary_dim, embedding_dropout=config["embd_pdrop"])
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    decoder = llama.decoder(parts, of, layers, norm=layer_norm, last_norm="model.final_layernorm", model=Decoder)
    return CausalLM(decoder, parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> "DecoderLayer":
    modules = llama.layer_modules(parts, index, "input_layernorm", norm=layer_norm)
    modules["self_attn.o_proj"] = modules["self_attn.dense"]
    attention = PartlyRotatedAttention(parts.paper, of, modules)
    of = of._replace(residual_dropout=parts.config["resid_pdrop"])
    return DecoderLayer(parts.paper, of, modules, attention, MLP(parts.paper, of, modules))


class PartlyRotatedAttention(llama.Attention):
    """``PhiAttention``, ``StableLmAttention``: rotary positions on the first part of each head."""

    def rotated(self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> tuple[PaperTensor, ...]:
        """The parts are locals of ``forward``: those that pass keep the projections alive."""
        dim = self.of.rotary_dim
        query_rot, query_pass = part(q, dim), part(q, q.shape[-1] - dim)
        key_rot, key_pass = part(k, dim), part(k, k.shape[-1] - dim)
        query_rot, key_rot = apply_rotary(query_rot, key_rot, cos, sin)
        query_states = cat_last(query_rot, query_pass)
        key_states = cat_last(key_rot, key_pass)
        return query_states, key_states, query_rot, query_pass, key_rot, key_pass


class MLP(Module):
    """``PhiMLP``."""

    def __init__(self, paper: Paper, of: llama.LlamaOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.activation_fn = of.activation
        self.fc1, self.fc2 = modules["mlp.fc1"], modules["mlp.fc2"]

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``fc2(act(fc1(x)))``."""
        hidden_states = self.fc1(hidden_states)
        hidden_states = self.activation_fn(hidden_states)
        hidden_states = self.fc2(hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class DecoderLayer(llama.DecoderLayer):
    """``PhiDecoderLayer``."""

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and MLP side by side."""
        drop = self.of.residual_dropout
        residual = hidden_states
        hidden_states = self.modules["input_layernorm"](hidden_states)
        attn_outputs, _ = self.self_attn(hidden_states, cos, sin, mask)
        attn_outputs = dropped(attn_outputs, drop)
        feed_forward_hidden_states = dropped(self.mlp(hidden_states), drop)
        hidden_states = add(add(attn_outputs, feed_forward_hidden_states), residual)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Decoder(llama.Decoder):
    """``PhiModel``: the embedding is dropped before the first layer and does not live on."""

    def entered(self, inputs_embeds: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """``inputs_embeds = dropout(inputs_embeds)``."""
        inputs_embeds = dropped(inputs_embeds, self.of.embedding_dropout)
        return inputs_embeds, inputs_embeds
