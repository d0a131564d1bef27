"""Facts as data, each with its source: models, GPUs, dtypes, software stacks by version."""

from qmem.catalogue.dtypes import DTYPE_BYTES, dtype_bytes
from qmem.catalogue.find import FoundModel, find_model
from qmem.catalogue.gpus import COMMON_GPUS, ContextPrior, Gpu, all_gpus, find_gpu
from qmem.catalogue.models import CatalogueModel, all_models, match_models

__all__ = [
    "COMMON_GPUS", "DTYPE_BYTES", "CatalogueModel", "ContextPrior", "FoundModel", "Gpu", "all_gpus", "all_models",
    "dtype_bytes", "find_gpu", "find_model", "match_models",
]  # fmt: skip
