"""What an allocation of the traced step was for: module, Python line, operation and kind, from its stack.

It reads the frames that torch's history recorded, innermost first, and knows nothing of time.
"""

import os
import re
from typing import Any, NamedTuple

from qmem.ledger import Kind, Phase

DEQUANTIZES = re.compile(r"_?dequant")
"""bitsandbytes' functions that make a 16-bit weight of a packed one all begin so."""

_MULTIPLIES = "linear"
"""What ``_dequant_linear_fallback`` of bitsandbytes 0.50 does with the weight that it made: an output, not a weight."""

_OPERATION = re.compile(r"at::_ops::(\w+?)(?:_Tensor|_Scalar|_out|_default)?::(?:call|redispatch)")
_NODE = re.compile(r"torch::autograd::(?:generated::)?(\w+)::apply\(")
_ALLOCATES = ("empty", "_to_copy", "resize", "zeros")
_LIBRARY_PATH = re.compile(r".*(?:site-packages|dist-packages)/")
_UNTELLING = ("torch/", "accelerate/")
_LAYER = re.compile(r"^(?P<before>.*?)\.(?P<index>\d+)(?:\.(?P<inside>.*))?$")
_INSIDE_ADAPTER = re.compile(r"\.(?:base_layer|lora_\w+)(?:\..*)?$")
_ROOTS = ("base_model", "base_model.model")
_WORKSPACE = ("setWorkspaceForHandle", "getCUDABlasLtWorkspace", "parseChosenWorkspaceSize")


class Label(NamedTuple):
    """What an allocation was for."""

    owner: str
    kind: Kind
    because: str


def module_role(name: str) -> str:
    """``self_attn.q_proj`` for ``base_model.model.model.layers.3.self_attn.q_proj.lora_A.default``.

    A layer itself is ``decoder layer``; outside the layers the last word is enough.
    """
    name = _INSIDE_ADAPTER.sub("", name.removeprefix("base_model.model."))
    match = _LAYER.match(name)
    if match is None:
        return "" if name in _ROOTS else name.rpartition(".")[2]
    return match["inside"] or "decoder layer"


def label_of(entry: dict[str, Any], phase: Phase, *, in_head: bool) -> Label:
    """The label of an allocation in the history.

    ``in_head`` says that the backward of the head and the loss is still running.
    """
    operation, node, lines = _read(entry["frames"])
    if operation == "workspace":
        return Label("cuBLAS handle", Kind.WORKSPACE, "workspace")
    where = next((line for line in lines if not line[0].startswith(_UNTELLING) and "/qmem/" not in line[0]), None)
    because = f"{node or operation or 'allocation'}{f' at {_here(where[0])}:{where[1]}' if where else ''}"
    multiplies = operation.startswith(_MULTIPLIES)
    kind = Kind.DEQUANTIZED if _dequantizes(lines) and not multiplies else _kind(phase, in_head=in_head)
    return Label(entry.get("user_metadata") or _otherwise(phase, kind, node), kind, because)


def _here(path: str) -> str:
    """The path from the working folder on, where it lies in that."""
    return path.removeprefix(f"{os.getcwd()}{os.sep}")  # noqa: PTH109 - text, as the frames have it


def _dequantizes(lines: "list[tuple[str, int, str]]") -> bool:
    return any(DEQUANTIZES.match(function) for _, _, function in lines)


def _kind(phase: Phase, *, in_head: bool) -> Kind:
    if phase == "optimizer step":
        return Kind.OPTIMIZER_TEMPORARY
    return Kind.LOGITS if phase == "loss" or in_head else Kind.INTERMEDIATE


def _otherwise(phase: Phase, kind: Kind, node: str) -> str:
    """The owner where no module was running."""
    if kind is Kind.LOGITS:
        return "loss"
    if phase == "forward":
        return "batch"
    return node or phase


def _read(frames: list[dict[str, Any]]) -> tuple[str, str, list[tuple[str, int, str]]]:
    """The ATen operation, the autograd node that ran it, and the Python lines, innermost first.

    A node outside of Python lines is one that a checkpoint's recomputation runs in: it says nothing of the allocation.
    """
    operations: list[str] = []
    node = ""
    lines: list[tuple[str, int, str]] = []
    for frame in frames:
        name, file = frame["name"], frame["filename"]
        if file.endswith(".py"):
            lines.append((_LIBRARY_PATH.sub("", file), frame["line"], name))
        elif any(word in name for word in _WORKSPACE):
            return "workspace", "", lines
        elif not lines and (match := _OPERATION.match(name)):
            operations.append(match[1])
        elif not (node or lines) and (match := _NODE.match(name)):
            node = match[1]
    return _told(operations), node, lines


def _told(operations: list[str]) -> str:
    """The outermost operation, and inside a composite one the step that allocates: ``linear > to``."""
    steps = list(dict.fromkeys(name for name in reversed(operations) if not name.startswith(_ALLOCATES)))
    return " > ".join(steps[:2])
