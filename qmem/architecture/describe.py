"""From a config.json to the named tensors of its model.

It owns the refusals that need no family: no model type, a family that is not built, remote code, several modes,
weights stored in a format that is not modelled.
"""

from collections.abc import Mapping
from typing import Any

from qmem.architecture.architecture import Architecture
from qmem.architecture.families import FAMILIES, outline
from qmem.architecture.fields import Fields
from qmem.architecture.outline import assemble
from qmem.errors import UnsupportedError, UsageError

OTHER_MODES = ("vision_config", "audio_config", "text_config")


def describe(config: Mapping[str, Any], *, fused_experts: bool = True) -> Architecture:
    """The model that transformers builds from a config.json, with the head that its family is trained with.

    Args:
        config: the content of a config.json.
        fused_experts: whether the library holds experts as 3-D parameters, as transformers does from version 5 on.

    Raises:
        UsageError: a field is missing, of the wrong type or impossible; it is named.
        UnsupportedError: a family, or a kind of model, that is not built.
    """
    family = _family(config)
    _refuse_other_modes(config, family)
    _refuse_unknown(config, family)
    _refuse_stored_formats(config)
    fields = Fields(config)
    found = outline(family, fields, fused_experts=fused_experts)
    return assemble(family, found, fields, fused_experts=fused_experts)


def _family(config: Mapping[str, Any]) -> str:
    if not isinstance(config, Mapping):
        raise UsageError(f"config.json holds a {type(config).__name__}, but must be an object")
    family = config.get("model_type")
    if not isinstance(family, str) or not family or not family.isprintable():
        raise UsageError("config.json has no model_type", hint="it names the family, for example llama")
    return family


def _refuse_other_modes(config: Mapping[str, Any], family: str) -> None:
    present = [name for name in OTHER_MODES if name in config]
    if present:
        text = config.get("text_config")
        inner = text.get("model_type") if isinstance(text, Mapping) else None
        hint = _plan_the_text_model(inner) if inner in FAMILIES else _known()
        raise UnsupportedError(f"{family} is a multi-modal model ({', '.join(present)}), not a text model", hint=hint)


def _plan_the_text_model(family: str) -> str:
    return f"its text_config alone, a {family}, can be planned: write :text_config behind the model's name"


def _refuse_unknown(config: Mapping[str, Any], family: str) -> None:
    if family in FAMILIES:
        return
    if "auto_map" in config:
        raise UnsupportedError(f"{family} brings its own code (auto_map), which qmem never runs", hint=_known())
    raise UnsupportedError(f"model type {family!r} is not supported yet", hint=_known())


def _refuse_stored_formats(config: Mapping[str, Any]) -> None:
    stored = config.get("quantization_config")
    method = stored.get("quant_method", "bitsandbytes") if isinstance(stored, Mapping) else None
    if method not in (None, "bitsandbytes"):
        raise UnsupportedError(
            f"this checkpoint stores {method} weights, which qmem does not model",
            hint="plan a copy with 16-bit weights: a config.json without quantization_config",
        )


def _known() -> str:
    return f"supported are {', '.join(FAMILIES)}"
