"""The step of an OLMo 2: norms after attention and MLP, queries and keys normalized over all heads at once.

Source: transformers 5.23.0 ``models/olmo2/modeling_olmo2.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.olmo import Fp32RotaryDecoder, rotated_in_fp32
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.norms import Fp32WeightRMSNorm
from qmem.estimator.operations import add
from qmem.estimator.paper import Module, PaperTensor

NORMS = ("post_attention_layernorm", "post_feedforward_layernorm", *llama.QK_NORMS)


def build(parts: Parts) -> CausalLM:
    """A Llama of OLMo 2's parts."""
    of = llama.options(parts)
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers, norm=rms_norm, model=Fp32RotaryDecoder), parts.head())


def rms_norm(parts: Parts, name: str, role: str) -> Module:
    """The norm of an OLMo 2."""
    return Fp32WeightRMSNorm(parts.paper, role, parts.weight(name))


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> "DecoderLayer":
    modules = llama.layer_modules(parts, index, *NORMS, norm=rms_norm)
    return DecoderLayer(parts.paper, of, modules, Attention(parts.paper, of, modules))


class Attention(llama.Attention):
    """``Olmo2Attention``."""

    def heads(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """Queries and keys are normalized before they are cut into heads."""
        modules = self.projections
        query_states = modules["self_attn.q_norm"](modules["self_attn.q_proj"](hidden_states))
        key_states = modules["self_attn.k_norm"](modules["self_attn.k_proj"](hidden_states))
        value_states = modules["self_attn.v_proj"](hidden_states)
        return self.cut(query_states, key_states, value_states)

    def rotated(
        self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """In fp32, as the tables are, then cast back."""
        return rotated_in_fp32(q, k, cos, sin)


class DecoderLayer(llama.DecoderLayer):
    """``Olmo2DecoderLayer``."""

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Each part is normalized after it has run."""
        residual = hidden_states
        hidden_states, _ = self.self_attn(hidden_states, cos, sin, mask)
        hidden_states = self.modules["post_attention_layernorm"](hidden_states)
        hidden_states = add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.modules["post_feedforward_layernorm"](hidden_states)
        hidden_states = add(residual, hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers
