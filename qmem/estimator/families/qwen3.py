"""The step of a Qwen3: a Qwen2's without biases, with queries and keys normalized per head.

Source: transformers 5.23.0 ``models/qwen3/modeling_qwen3.py``.
"""

from collections.abc import Mapping
from typing import Any

from qmem.estimator.families import llama, qwen2


def options(config: Mapping[str, Any], attention: str) -> llama.LlamaOptions:
    """A Qwen2's options with ``q_norm`` and ``k_norm``."""
    return qwen2.options(config, attention)._replace(qk_norm=True)
