"""The step of a Qwen3: a Qwen2's without biases, with queries and keys normalized per head.

Source: transformers 5.23.0 ``models/qwen3/modeling_qwen3.py``.
"""

from qmem.estimator.families import llama, qwen2
from qmem.estimator.families.parts import CausalLM, Parts


def build(parts: Parts) -> CausalLM:
    """A Qwen2 with ``q_norm`` and ``k_norm``."""
    return llama.assemble(parts, qwen2.options(parts)._replace(qk_norm=True))
