"""What a model is made of: config.json to named tensors; what peft adapts and bitsandbytes quantizes of it."""

from qmem.architecture.adapters import Adapted, AdapterPlan, adapt
from qmem.architecture.architecture import Architecture, Buffer, Linear, Parameter, Role, position_warning
from qmem.architecture.describe import describe
from qmem.architecture.families import FAMILIES
from qmem.architecture.quantized import quantized_modules

__all__ = [
    "FAMILIES", "Adapted", "AdapterPlan", "Architecture", "Buffer", "Linear", "Parameter", "Role", "adapt", "describe",
    "position_warning", "quantized_modules",
]  # fmt: skip
