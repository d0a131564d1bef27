"""One file a family: the program of its forward, with the structure and the scoping of the real one."""

from importlib import import_module
from typing import TYPE_CHECKING

from qmem.errors import UnsupportedError

if TYPE_CHECKING:
    from qmem.estimator.families.parts import CausalLM, Parts

FAMILIES = {
    "cohere": "cohere",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "glm": "glm",
    "gpt2": "gpt2",
    "gpt_bigcode": "gpt_bigcode",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "gptj": "gptj",
    "granite": "granite",
    "llama": "llama",
    "llama4_text": "llama4",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "mpt": "mpt",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "opt": "opt",
    "phi": "phi",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_5_text": "qwen3_5",
    "qwen3_moe": "qwen3_moe",
    "qwen3_next": "qwen3_next",
    "roberta": "roberta",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "t5": "t5",
}
"""The families whose step is walked, by ``model_type``, each with the module of this package that walks it."""


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


def build_family(parts: "Parts") -> "CausalLM":
    """The program of a model of a family that is walked.

    Raises:
        UnsupportedError: the config asks for a part that is not walked.
    """
    # A family is imported when it is asked for: all of them together cost more than a whole estimate may.
    module = import_module(f"{__name__}.{FAMILIES[parts.architecture.family]}")
    program: CausalLM = module.build(parts)
    return program
