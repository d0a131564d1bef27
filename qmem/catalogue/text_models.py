"""The text model inside a multi-modal one: which families are loaded as it, and how a name asks for it.

Source: transformers 5.23.0 ``models/auto/modeling_auto.py`` (``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES``) and
``models/auto/auto_factory.py`` (``from_config`` and ``from_pretrained`` take ``config.get_text_config()`` where the
class is that of the text model).
"""

from collections.abc import Mapping
from typing import Any

from qmem.errors import UsageError

TEXT_PART = ":text_config"
"""What stands behind a model's name where its text model alone is meant."""

LOADED_AS_TEXT = {"llama4": "llama4_text", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
"""Multi-modal families that ``AutoModelForCausalLM`` loads as their text model, without any tower."""


def split_text_part(name: str) -> tuple[str, bool]:
    """A model's name without the mark of its text model, and whether it had one."""
    whole = name.strip().removesuffix(TEXT_PART)
    return whole, whole != name.strip()


def is_loaded_as_text(config: Mapping[str, Any]) -> bool:
    """Whether transformers takes the text model out of this config by itself."""
    return config["model_type"] in LOADED_AS_TEXT and "text_config" in config


def text_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config of the text model.

    Raises:
        UsageError: there is none, or it does not name its family.
    """
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        raise UsageError(f"{name} has no text_config in its config.json", hint=f"leave out {TEXT_PART}")
    family = inner.get("model_type", LOADED_AS_TEXT.get(config["model_type"]))
    if not isinstance(family, str):
        raise UsageError(
            f"the text_config of {name} names no model_type", hint="it names the family, such as llama4_text"
        )
    return {**inner, "model_type": family}
