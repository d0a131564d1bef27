"""One file a family: the program of its forward, with the structure and the scoping of the real one."""

from collections.abc import Callable, Mapping
from typing import Any

from qmem.errors import UnsupportedError
from qmem.estimator.families import llama, mistral, qwen2, qwen3

Options = Callable[[Mapping[str, Any], str], llama.LlamaOptions]

FAMILIES: dict[str, Options] = {
    "llama": llama.options,
    "mistral": mistral.options,
    "qwen2": qwen2.options,
    "qwen3": qwen3.options,
}
"""Families whose step is walked, by ``model_type``."""


def check_family(family: str) -> None:
    """Refuse a family whose step is not walked yet.

    Raises:
        UnsupportedError: naming those that are.
    """
    if family not in FAMILIES:
        raise UnsupportedError(
            f"the training step of the family {family!r} is not modelled yet",
            hint=f"modelled are {', '.join(FAMILIES)}; qmem estimate --rule-of-thumb works for every model",
        )


def family_options(family: str, config: Mapping[str, Any], attention: str) -> llama.LlamaOptions:
    """What a family's program needs to know of a config.

    Raises:
        UnsupportedError: the family's step is not walked yet, or the config asks for a part that is not.
    """
    check_family(family)
    return FAMILIES[family](config, attention)
