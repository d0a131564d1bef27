"""The families that qmem knows, one function each: config fields in, outline out."""

from collections.abc import Callable

from qmem.architecture.families.deepseek import deepseek_v2, deepseek_v3
from qmem.architecture.families.falcon import falcon
from qmem.architecture.families.gemma import gemma, gemma2, gemma3_text
from qmem.architecture.families.gemma4 import gemma4_text
from qmem.architecture.families.gpt2 import gpt2
from qmem.architecture.families.gpt_bigcode import gpt_bigcode
from qmem.architecture.families.gpt_neox import gpt_neox
from qmem.architecture.families.gpt_oss import gpt_oss
from qmem.architecture.families.gptj import gptj
from qmem.architecture.families.llama import llama, mistral, qwen2, qwen3
from qmem.architecture.families.llama4 import llama4_text
from qmem.architecture.families.mixture import mixtral, qwen2_moe, qwen3_moe
from qmem.architecture.families.mpt import mpt
from qmem.architecture.families.opt import opt
from qmem.architecture.families.phi3 import phi3
from qmem.architecture.families.qwen3_5 import qwen3_5_moe_text, qwen3_5_text
from qmem.architecture.families.qwen3_next import qwen3_next
from qmem.architecture.families.relatives import (
    cohere,
    glm,
    granite,
    olmo,
    olmo2,
    phi,
    smollm3,
    stablelm,
    starcoder2,
)
from qmem.architecture.families.roberta import roberta
from qmem.architecture.families.t5 import t5
from qmem.architecture.fields import Fields
from qmem.architecture.outline import Outline

DENSE: dict[str, Callable[[Fields], Outline]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_5_text": qwen3_5_text,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3_text,
    "phi3": phi3,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "falcon": falcon,
    "granite": granite,
    "smollm3": smollm3,
    "olmo": olmo,
    "olmo2": olmo2,
    "cohere": cohere,
    "starcoder2": starcoder2,
    "glm": glm,
    "stablelm": stablelm,
    "phi": phi,
    "roberta": roberta,
    "t5": t5,
    "gpt_bigcode": gpt_bigcode,
    "gptj": gptj,
    "mpt": mpt,
}
"""Families without experts by ``model_type``."""


MIXTURES = {
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "qwen3_5_moe_text": qwen3_5_moe_text,
    "qwen3_next": qwen3_next,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
    "gemma4_text": gemma4_text,
    "llama4_text": llama4_text,
}
"""Families whose tensors depend on how the library holds experts."""

FAMILIES = (*DENSE, *MIXTURES)
"""The ``model_type`` of every family that can be described."""


CAUSAL = "AutoModelForCausalLM"

AUTO_CLASSES = {"roberta": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}
"""The class of transformers that builds a family, where it is not that of causal language models."""


def auto_class(family: str) -> str:
    """The class of transformers that builds the model of a family which is described here."""
    return AUTO_CLASSES.get(family, CAUSAL)


def outline(family: str, fields: Fields, *, fused_experts: bool) -> Outline:
    """The outline of a model of a known family."""
    if family in MIXTURES:
        return MIXTURES[family](fields, fused_experts=fused_experts)
    return DENSE[family](fields)
