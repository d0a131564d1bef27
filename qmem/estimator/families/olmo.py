"""The step of an OLMo: norms without weights, rotary tables in fp32, queries, keys and values that may be clipped.

Source: transformers 5.23.0 ``models/olmo/modeling_olmo.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.norms import Fp32LayerNorm
from qmem.estimator.operations import clamp_in_place, to
from qmem.estimator.paper import Module, PaperTensor, Role
from qmem.estimator.rotary import Tables, apply_rotary
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """A Llama of OLMo's parts."""
    of = llama.options(parts)
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers, norm=layer_norm, model=Fp32RotaryDecoder), parts.head())


def layer_norm(parts: Parts, _name: str, role: str) -> Module:
    """The norm of an OLMo, which has no parameters."""
    return Fp32LayerNorm(parts.paper, Role(Kind.INTERMEDIATE, role))


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> llama.DecoderLayer:
    modules = llama.layer_modules(parts, index, *llama.PRE_NORMS, norm=layer_norm)
    attention = Attention if parts.config["clip_qkv"] is None else ClippedAttention
    return llama.DecoderLayer(parts.paper, of, modules, attention(parts.paper, of, modules))


class Fp32RotaryDecoder(llama.Decoder):
    """A decoder whose rotary tables stay fp32."""

    def tables(self, s: int, _dtype: str) -> dict[str, Tables]:
        """Cosines and sines as they are made."""
        return super().tables(s, "fp32")


def rotated_in_fp32(
    q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor
) -> tuple[PaperTensor, PaperTensor]:
    """``apply_rotary_pos_emb`` with tables in fp32: the products are fp32, the results are cast back at the end."""
    q_type, k_type = q.dtype, k.dtype
    q_embed, k_embed = apply_rotary(q, k, cos, sin)
    return to(q_embed, q_type), to(k_embed, k_type)


class Attention(llama.Attention):
    """``OlmoAttention``."""

    def heads(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """All three are projected before they are cut into heads."""
        return self.cut(*self.projected(hidden_states))

    def rotated(
        self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """In fp32, as the tables are, then cast back."""
        return rotated_in_fp32(q, k, cos, sin)


class ClippedAttention(Attention):
    """``OlmoAttention`` with ``clip_qkv``."""

    def projected(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """All three are clipped in place when the last is there."""
        query_states, key_states, value_states = super().projected(hidden_states)
        query_states = clamp_in_place(query_states)
        key_states = clamp_in_place(key_states)
        value_states = clamp_in_place(value_states)
        return query_states, key_states, value_states
