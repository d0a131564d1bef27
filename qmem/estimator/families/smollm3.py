"""The step of a SmolLM3: a Llama's, with layers that do not rotate; those may have a window.

Source: transformers 5.23.0 ``models/smollm3/modeling_smollm3.py``, ``configuration_smollm3.py``.
"""

from qmem.estimator.families import llama, qwen2
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.paper import PaperTensor


def build(parts: Parts) -> CausalLM:
    """A Llama of SmolLM3's layers."""
    of = qwen2.options(parts)
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers), parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> llama.DecoderLayer:
    modules = llama.layer_modules(parts, index, *llama.PRE_NORMS)
    rotates = parts.config["no_rope_layers"][index]
    attention = (llama.Attention if rotates else UnrotatedAttention)(parts.paper, of, modules)
    return llama.DecoderLayer(parts.paper, of, modules, attention)


class UnrotatedAttention(llama.Attention):
    """``SmolLM3Attention`` without ``use_rope``."""

    def rotated(
        self, q: PaperTensor, k: PaperTensor, _cos: PaperTensor, _sin: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """As they are."""
        return q, k
