"""The step of a Qwen2: a Llama's, with biases on q, k and v; a window only where ``use_sliding_window`` is set.

Source: transformers 5.23.0 ``models/qwen2/modeling_qwen2.py``.
"""

from collections.abc import Mapping
from typing import Any

from qmem.errors import UnsupportedError
from qmem.estimator.families import llama


def options(config: Mapping[str, Any], attention: str) -> llama.LlamaOptions:
    """A Llama's options.

    Raises:
        UnsupportedError: the config windows some of its layers only.
    """
    windowed = config["use_sliding_window"] and config["sliding_window"] is not None
    named = "sliding_attention" in (config.get("layer_types") or ())
    if named or (windowed and config["max_window_layers"] < config["num_hidden_layers"]):
        raise UnsupportedError(
            "the config uses a sliding window on some layers, which the estimate does not walk yet",
            hint="set use_sliding_window to false in the config (and no layer_types) to plan the job without it",
        )
    return llama.options(config, attention)
