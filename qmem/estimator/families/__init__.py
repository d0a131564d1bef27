"""One file a family: the program of its forward, with the structure and the scoping of the real one."""

from collections.abc import Callable

from qmem.errors import UnsupportedError
from qmem.estimator.families import (
    cohere,
    deepseek_v2,
    deepseek_v3,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    llama,
    mistral,
    mixtral,
    mpt,
    olmo,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    roberta,
    smollm3,
    stablelm,
    starcoder2,
    t5,
)
from qmem.estimator.families.parts import CausalLM, Parts

FAMILIES: dict[str, Callable[[Parts], CausalLM]] = {
    "cohere": cohere.build,
    "deepseek_v2": deepseek_v2.build,
    "deepseek_v3": deepseek_v3.build,
    "falcon": falcon.build,
    "gemma": gemma.build,
    "gemma2": gemma2.build,
    "gemma3_text": gemma3.build,
    "glm": glm.build,
    "gpt2": gpt2.build,
    "gpt_bigcode": gpt_bigcode.build,
    "gpt_neox": gpt_neox.build,
    "gpt_oss": gpt_oss.build,
    "gptj": gptj.build,
    "granite": granite.build,
    "llama": llama.build,
    "mistral": mistral.build,
    "mixtral": mixtral.build,
    "mpt": mpt.build,
    "olmo": olmo.build,
    "olmo2": olmo2.build,
    "opt": opt.build,
    "phi": phi.build,
    "phi3": phi3.build,
    "qwen2": qwen2.build,
    "qwen2_moe": qwen2_moe.build,
    "qwen3": qwen3.build,
    "qwen3_moe": qwen3_moe.build,
    "roberta": roberta.build,
    "smollm3": smollm3.build,
    "stablelm": stablelm.build,
    "starcoder2": starcoder2.build,
    "t5": t5.build,
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
