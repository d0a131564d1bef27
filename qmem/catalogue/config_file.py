"""A ``config.json`` from a disk: read, and refused in one line where it cannot describe a model.

It knows which configs are no plain description (quantized weights, a model that brings its own code), not
what the numbers mean.
"""

import os.path
from typing import Any

from qmem.catalogue.models import all_models
from qmem.errors import UnsupportedError, UsageError

REMOTE_CODE_TYPES = ("baichuan", "chatglm", "internlm", "internlm2", "qwen")
"""Families of the catalogue that transformers 5.23.0 does not have: their repositories bring the code."""


def local_config_path(name: str) -> str | None:
    """The ``config.json`` that a name points to on this disk: itself, or in the folder it names.

    Raises:
        UsageError: the name is written as a path, and there is no ``config.json``.
    """
    # os.path answers False for names that are no path at all; pathlib raises for some of them.
    path = os.path.expanduser(name)  # noqa: PTH111
    for candidate in (path, os.path.join(path, "config.json")):  # noqa: PTH118
        if os.path.isfile(candidate):  # noqa: PTH113
            return candidate
    if not name.startswith((".", "/", "~")) and not name.endswith((".json", "/", "\\")):
        return None
    if os.path.isdir(path):  # noqa: PTH112
        raise UsageError(f"the folder {name} has no config.json", hint="name the folder that holds the model")
    raise UsageError(f"there is no file or folder {name}", hint="name a model, a folder or a config.json")


def read_config(path: str, shown: str) -> dict[str, Any]:
    """The config in a file, checked: a JSON object that names its family and asks for no code of its own.

    Args:
        path: where the file lies.
        shown: how error messages call it.

    Raises:
        UsageError: it cannot be read, is no JSON object, or names no ``model_type``.
        UnsupportedError: it asks for remote code.
    """
    config = _read_json(path, shown)
    if not isinstance(config, dict):
        raise UsageError(f"{shown} is no JSON object", hint="a config.json begins with {")
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise UsageError(f"{shown} names no model_type", hint="name the config.json of a transformers model")
    if brings_code(config):
        raise UnsupportedError(
            f"{shown} asks for remote code (auto_map, model_type {config['model_type']}), and qmem never runs a "
            "model's code",
            hint="plan a model of a family that transformers has itself (see qmem models)",
        )
    return config


def brings_code(config: dict[str, Any]) -> bool:
    """Whether the model needs code from its repository.

    Some configs name such code (``auto_map``) although transformers has the family by now, as Phi-3's and
    Falcon's do; there the code is not needed.
    """
    if "auto_map" not in config:
        return False
    native = {model.model_type for model in all_models()} - set(REMOTE_CODE_TYPES)
    return config["model_type"] not in native


def stored_quantization(config: dict[str, Any]) -> str:
    """The method by which the checkpoint's weights are quantized (``gptq``, ``bitsandbytes``, ...), or nothing."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return ""
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"
    return str(quantization.get("quant_method") or "unnamed")


def _read_json(path: str, shown: str) -> Any:
    import json  # noqa: PLC0415 - models of the catalogue do without; msgspec refuses the Infinity that configs hold

    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return json.loads(file.read())
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{shown} is no valid JSON: {error.msg} ({where})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{shown} is no valid JSON: it is no text, or nested too deep") from error
