"""The step of a Mistral: a Llama's, with a sliding window where the config has one.

Under sdpa a window that is not longer than the sequence builds a mask, which costs the flash kernel.
Source: transformers 5.23.0 ``models/mistral/modeling_mistral.py``, ``masking_utils.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts


def build(parts: Parts) -> CausalLM:
    """A Llama with ``sliding_window``."""
    return llama.assemble(parts, llama.options(parts)._replace(window=parts.config["sliding_window"]))
