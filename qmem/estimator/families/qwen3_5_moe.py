"""The step of a Qwen3.5 with experts: in every layer, beside one that every token passes.

Source: transformers 5.23.0 ``models/qwen3_5_moe/modeling_qwen3_5_moe.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.mixture import refuse_what_is_not_walked
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.families.qwen2_moe import shared_expert_block
from qmem.estimator.families.qwen3_5 import decoder, layer_modules, mixer, options


def build(parts: Parts) -> CausalLM:
    """A Qwen3.5 with experts in the place of the MLP; probabilities of the chosen always sum to one."""
    refuse_what_is_not_walked(parts)
    of = options(parts)
    layers = []
    for index, modules in layer_modules(parts, of).items():
        block = shared_expert_block(parts, index, modules, normalizes=True)
        layers.append(llama.DecoderLayer(parts.paper, of, modules, mixer(parts, of, index, modules), block))
    return CausalLM(decoder(parts, of, layers), parts.head())
