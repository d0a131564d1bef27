"""One file a family: the program of its forward, with the structure and the scoping of the real one."""

from collections.abc import Callable

from qmem.errors import UnsupportedError
from qmem.estimator.families import llama, mistral, qwen2, qwen3
from qmem.estimator.families.parts import CausalLM, Parts

FAMILIES: dict[str, Callable[[Parts], CausalLM]] = {
    "llama": llama.build,
    "mistral": mistral.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
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


def build_family(parts: Parts) -> CausalLM:
    """The program of a model of a family that is walked.

    Raises:
        UnsupportedError: the config asks for a part that is not walked.
    """
    return FAMILIES[parts.architecture.family](parts)
