"""The step of a StarCoder2: a Llama's frame with layer norms, a plain MLP, biases, and dropout by the config.

Source: transformers 5.23.0 ``models/starcoder2/modeling_starcoder2.py``.
"""

from collections.abc import Mapping

from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.operations import dropped
from qmem.estimator.paper import Module, Paper, PaperTensor, Role
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """A Llama of StarCoder2's parts."""
    config = parts.config
    of = llama.options(parts)._replace(
        window=config["sliding_window"],
        residual_dropout=config["residual_dropout"],
        embedding_dropout=config["embedding_dropout"],
    )
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    decoder = llama.decoder(parts, of, layers, norm=layer_norm, model=Decoder)
    return CausalLM(decoder, parts.head())


def layer_norm(parts: Parts, name: str, role: str) -> Module:
    """A layer norm with weight and bias."""
    return parts.layer_norm(name, role)


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> llama.DecoderLayer:
    modules = llama.layer_modules(parts, index, *llama.PRE_NORMS, norm=layer_norm)
    return llama.DecoderLayer(parts.paper, of, modules, mlp=MLP(parts.paper, of, modules))


class MLP(Module):
    """``Starcoder2MLP``."""

    def __init__(self, paper: Paper, of: llama.LlamaOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.of = of
        self.c_fc, self.c_proj = modules["mlp.c_fc"], modules["mlp.c_proj"]

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``dropout(c_proj(act(c_fc(x))))``."""
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.of.activation(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        return dropped(hidden_states, self.of.residual_dropout)


class Decoder(llama.Decoder):
    """``Starcoder2Model``: the embedding is dropped before the first layer, and lives on beside it."""

    def entered(self, inputs_embeds: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """``hidden_states = dropout(inputs_embeds)``."""
        return inputs_embeds, dropped(inputs_embeds, self.of.embedding_dropout)
