"""The step of a Qwen2: a Llama's, with biases on q, k and v; a window on the layers that the config names.

Source: transformers 5.23.0 ``models/qwen2/modeling_qwen2.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import FULL, SLIDING


def build(parts: Parts) -> CausalLM:
    """A Llama whose layers may differ in their windows."""
    return llama.assemble(parts, options(parts))


def options(parts: Parts) -> llama.LlamaOptions:
    """A Llama's, with the type of each layer; the second mask is made only if a layer has a window."""
    config = parts.config
    layer_types = config["layer_types"]
    kinds = (FULL, SLIDING) if SLIDING in layer_types else (FULL,)
    return llama.options(parts)._replace(window=config["sliding_window"], layer_types=layer_types, mask_kinds=kinds)
