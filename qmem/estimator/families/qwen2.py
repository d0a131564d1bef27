"""The step of a Qwen2: a Llama's, with biases on q, k and v; a window only where ``use_sliding_window`` is set.

Source: transformers 5.23.0 ``models/qwen2/modeling_qwen2.py``.
"""

from qmem.errors import UnsupportedError
from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts


def build(parts: Parts) -> CausalLM:
    """A Llama without a window.

    Raises:
        UnsupportedError: the config windows some of its layers only.
    """
    check_windows(parts)
    return llama.build(parts)


def check_windows(parts: Parts) -> None:
    """Raise ``UnsupportedError`` where the config windows some of its layers only."""
    config = parts.config
    windowed = config["use_sliding_window"] and config["sliding_window"] is not None
    named = "sliding_attention" in (config.get("layer_types") or ())
    if named or (windowed and config["max_window_layers"] < config["num_hidden_layers"]):
        raise UnsupportedError(
            "the config uses a sliding window on some layers, which the estimate does not walk yet",
            hint="set use_sliding_window to false in the config (and no layer_types) to plan the job without it",
        )
