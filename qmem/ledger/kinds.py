"""Kinds of memory: a small tree under the headings a user knows, and the waterline at which each counts."""

from enum import Enum
from typing import Literal

Waterline = Literal["requested", "allocated", "reserved", "device"]
WATERLINES: tuple[Waterline, ...] = ("requested", "allocated", "reserved", "device")
"""Each contains the one before: what tensors ask for, what the allocator hands out, holds, what the GPU sees."""


class Kind(str, Enum):
    """What a holding of memory is for.  ``heading`` is the branch of the tree it stands under.

    A producer that cannot tell a kind posts to its heading.
    """

    WEIGHTS = "weights"
    BASE_WEIGHT = "weights/base weight"
    QUANT_STATE = "weights/quantization state"
    WEIGHT_16BIT = "weights/16-bit weight"
    WEIGHT_32BIT = "weights/fp32 weight"
    LORA_AND_ADAMW = "LoRA and AdamW"
    ADAPTER = "LoRA and AdamW/adapter"
    GRADIENT = "LoRA and AdamW/gradient"
    OPTIMIZER_STATE = "LoRA and AdamW/optimizer state"
    ACTIVATIONS = "activations"
    CHECKPOINT = "activations/checkpoint"
    INTERMEDIATE = "activations/intermediate"
    LOGITS = "activations/logits and loss"
    BUFFERS = "buffers"
    DEQUANTIZED = "buffers/dequantized weight"
    WORKSPACE = "buffers/workspace"
    OPTIMIZER_TEMPORARY = "buffers/optimizer temporary"
    MODULE_BUFFER = "buffers/module buffer"
    PROGRAM = "program"
    KEPT = "program/kept tensor"
    OVERHEAD = "overhead"
    ROUNDING = "overhead/rounding"
    CACHE = "overhead/cache"
    CONTEXT = "overhead/context"
    UNEXPLAINED = "unexplained"

    @property
    def heading(self) -> "Kind":
        """The branch of the tree: ``Kind.ADAPTER.heading is Kind.LORA_AND_ADAMW``."""
        return Kind(self.value.partition("/")[0])

    @property
    def label(self) -> str:
        """The last word of the path, as a table row shows it."""
        return self.value.rpartition("/")[2]

    @property
    def waterline(self) -> Waterline:
        """The lowest waterline at which this kind counts."""
        return _WATERLINE.get(self, "requested")


_WATERLINE: dict[Kind, Waterline] = {
    Kind.ROUNDING: "allocated",
    Kind.CACHE: "reserved",
    Kind.CONTEXT: "device",
    Kind.OVERHEAD: "device",
}

HEADINGS = tuple(kind for kind in Kind if kind.heading is kind)
