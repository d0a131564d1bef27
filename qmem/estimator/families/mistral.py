"""The step of a Mistral: a Llama's, with a sliding window where the config has one.

Under sdpa a window that is not longer than the sequence builds a mask, which costs the flash kernel.
Source: transformers 5.23.0 ``models/mistral/modeling_mistral.py``, ``masking_utils.py``.
"""

from collections.abc import Mapping
from typing import Any

from qmem.estimator.families import llama


def options(config: Mapping[str, Any], attention: str) -> llama.LlamaOptions:
    """A Llama's options with ``sliding_window``."""
    return llama.options(config, attention)._replace(window=config["sliding_window"])
