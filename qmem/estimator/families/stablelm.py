"""The step of a StableLM: a Llama's frame with layer norms, a quarter of each head rotated; parallel by a flag.

Source: transformers 5.23.0 ``models/stablelm/modeling_stablelm.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.families.phi import PartlyRotatedAttention
from qmem.estimator.families.starcoder2 import layer_norm
from qmem.estimator.operations import add, dropped
from qmem.estimator.paper import PaperTensor


def build(parts: Parts) -> CausalLM:
    """A Llama of StableLM's parts."""
    of = llama.options(parts)
    of = of._replace(rotary_dim=int(of.head_dim * parts.config["partial_rotary_factor"]))
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers, norm=layer_norm), parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> llama.DecoderLayer:
    parallel = parts.config["use_parallel_residual"]
    names = ("input_layernorm",) if parallel else llama.PRE_NORMS
    modules = llama.layer_modules(parts, index, *names, norm=layer_norm)
    attention = Attention(parts.paper, of, modules)
    of = of._replace(residual_dropout=parts.config["hidden_dropout"])
    return (llama.ParallelLayer if parallel else DecoderLayer)(parts.paper, of, modules, attention)


class Attention(PartlyRotatedAttention):
    """``StableLmAttention``."""

    def heads(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """All three are projected before they are cut into heads."""
        return self.cut(*self.projected(hidden_states))


class DecoderLayer(llama.DecoderLayer):
    """``StableLmDecoderLayer``, one part after the other."""

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """The normalized input and attention's output live until the layer returns."""
        residual = hidden_states
        hidden_states = self.modules["input_layernorm"](hidden_states)
        self_attn_output, _ = self.self_attn(hidden_states, cos, sin, mask)
        residual = add(residual, self_attn_output)
        mlp_output = self.mlp(self.modules["post_attention_layernorm"](residual))
        mlp_output = dropped(mlp_output, self.of.residual_dropout)
        hidden_states = add(residual, mlp_output)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers
