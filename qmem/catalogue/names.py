"""Names of models: how they are compared, and what a name says about the weights behind it.

It owns spelling only: which model a name means is for ``qmem.catalogue.find``.
"""

from collections.abc import Iterable

FORMATS = {
    "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "aqlm": "AQLM", "exl2": "EXL2", "exl3": "EXL3", "mlx": "MLX",
    "fp8": "FP8", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "fp4": "FP4",
    "int4": "Int4", "int8": "Int8", "4bit": "4-bit", "8bit": "8-bit",
    "w4a16": "compressed-tensors", "w8a8": "compressed-tensors", "w8a16": "compressed-tensors",
    "gguf": "GGUF", "ggml": "GGUF",
    **{f"{kind}{bits}": "GGUF" for kind in ("q", "iq") for bits in range(1, 9)},
}  # fmt: skip
"""Words that publishers put into the names of quantized weights, and the format that each announces."""

_STORAGE_WORDS = frozenset({*FORMATS, "unsloth", "bnb", "bf16", "fp16", "quantized"})


def normal(name: str) -> str:
    """The spelling by which names are compared: case, blanks and underscores make no difference."""
    return "-".join(name.casefold().replace("_", " ").split())


def short(name: str) -> str:
    """The name without its organisation: ``Qwen3-14B`` of ``Qwen/Qwen3-14B``."""
    return name.rstrip("/").rpartition("/")[2]


def stored_format(name: str) -> str:
    """The format of quantized weights that a name announces (``GPTQ``, ``FP8``, ...), or nothing.

    bitsandbytes' weights are no such format: they are what qmem models.
    """
    if stores_bitsandbytes(name):
        return ""
    return next((FORMATS[_last(word)] for word in _words(name) if _last(word) in FORMATS), "")


def stores_bitsandbytes(name: str) -> bool:
    """Whether the name is that of weights that bitsandbytes has quantized."""
    return "bnb" in _words(short(name))


def is_dynamic_4bit(name: str) -> bool:
    """Whether the name is that of Unsloth's dynamic 4-bit weights, which leave some linears in 16 bit."""
    return normal(name).endswith("unsloth-bnb-4bit")


def base_name(name: str) -> str:
    """The short, comparable name without what it says about storage: ``qwen3-14b`` of ``x/Qwen3-14B-bnb-4bit``."""
    kept: list[str] = []
    for word in _words(short(name)):
        if _last(word) in _STORAGE_WORDS:
            break
        kept.append(word)
    return "-".join(kept)


def nearest(name: str, candidates: Iterable[str], count: int) -> list[str]:
    """The candidates most alike, best first, whatever the distance."""
    from difflib import get_close_matches  # noqa: PLC0415 - only on the way to an error

    return get_close_matches(name, list(candidates), n=count, cutoff=0.0)


def _words(name: str) -> list[str]:
    return normal(name).replace("/", "-").split("-")


def _last(word: str) -> str:
    """The part after the last dot: ``gguf`` of ``m.gguf``."""
    return word.rpartition(".")[2]
