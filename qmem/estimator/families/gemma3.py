"""The step of the text model of a Gemma 3: a Gemma 2's, with norms of queries and keys and rotary tables by layer type.

Weights of attention are not capped.  Source: transformers 5.23.0 ``models/gemma3/modeling_gemma3.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.gemma import ScaledEmbedding, rms_norm
from qmem.estimator.families.gemma2 import NORMS_AROUND, DecoderLayer, capped_head, hybrid_options
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.paper import PaperTensor
from qmem.estimator.rotary import Tables, rotary_tables


def build(parts: Parts) -> CausalLM:
    """A Gemma 2 with norms of heads."""
    of = hybrid_options(parts)
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    decoder = llama.decoder(parts, of, layers, norm=rms_norm, embedding=ScaledEmbedding(parts), model=Decoder)
    return CausalLM(decoder, capped_head(parts))


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> DecoderLayer:
    modules = llama.layer_modules(parts, index, *NORMS_AROUND, *llama.QK_NORMS, norm=rms_norm)
    return DecoderLayer(parts.paper, of, modules, Attention(parts.paper, of, modules))


class Attention(llama.Attention):
    """``Gemma3Attention``."""

    def heads(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """All three are projected before queries and keys are normalized, head by head."""
        modules = self.projections
        query_states, key_states, value_states = super().heads(hidden_states)
        query_states = modules["self_attn.q_norm"](query_states)
        key_states = modules["self_attn.k_norm"](key_states)
        return query_states, key_states, value_states


class Decoder(llama.Decoder):
    """``Gemma3TextModel``."""

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:
        """Cosines and sines of each type of layer that there is."""
        kinds = dict.fromkeys(self.of.layer_types)
        return {kind: rotary_tables(self.paper, s, self.of.rotary_dim, dtype) for kind in kinds}
