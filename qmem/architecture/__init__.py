"""What a model is made of: config.json to named tensors; what peft adapts and bitsandbytes quantizes of it."""

from qmem.architecture.adapters import Adapted, AdapterPlan, adapt
from qmem.architecture.architecture import EMBEDDINGS, Architecture, Buffer, Linear, Parameter, Role, position_warning
from qmem.architecture.describe import describe
from qmem.architecture.families import CAUSAL, FAMILIES, auto_class
from qmem.architecture.heads import check_plain_head
from qmem.architecture.quantized import quantized_modules
from qmem.architecture.routers import check_plain_routers

__all__ = [
    "CAUSAL", "EMBEDDINGS", "FAMILIES", "Adapted", "AdapterPlan", "Architecture", "Buffer", "Linear", "Parameter",
    "Role", "adapt", "auto_class", "check_plain_head", "check_plain_routers", "describe", "position_warning",
    "quantized_modules",
]  # fmt: skip
