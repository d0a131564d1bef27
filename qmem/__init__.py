"""qmem: a memory planner and profiler for QLoRA, LoRA and full fine-tuning.

``from qmem import Job, estimate`` is the Python interface; what it needs is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmem.estimator import estimate
    from qmem.integrations.callback import TrainerCallback
    from qmem.integrations.watch import watch
    from qmem.job import Job, job_from_objects
    from qmem.ledger import Ledger

__all__ = ["Job", "Ledger", "TrainerCallback", "estimate", "job_from_objects", "watch"]

_HOME = {
    "Job": "qmem.job",
    "job_from_objects": "qmem.job",
    "Ledger": "qmem.ledger",
    "estimate": "qmem.estimator",
    "watch": "qmem.integrations.watch",
    "TrainerCallback": "qmem.integrations.callback",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use, so that ``import qmem`` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'qmem' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
