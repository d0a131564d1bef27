"""Whether a head's weight can be multiplied by as it is, which a fused head does without calling the head."""

from qmem.architecture.adapters import AdapterPlan
from qmem.architecture.architecture import Architecture
from qmem.architecture.families import CAUSAL, auto_class
from qmem.architecture.quantized import quantized_modules
from qmem.errors import UnsupportedError
from qmem.job import Job


def check_plain_head(architecture: Architecture, plan: AdapterPlan, job: Job) -> None:
    """Raise ``UnsupportedError`` where the head is adapted, which SFTTrainer refuses, or quantized, or of another task.

    Source: trl 1.16.0 ``trainer/sft_trainer.py`` (``__init__``).
    """
    if auto_class(architecture.family) != CAUSAL:
        raise UnsupportedError(f"the stack {job.stack} trains no {architecture.family}", hint="use --stack hf")
    head = architecture.head
    if any(adapted.name == head for adapted in plan.adapted):
        raise UnsupportedError(
            f"the stack {job.stack} takes the weight of {head} without its adapter, which would never be trained",
            hint=f"leave {head} out of the targets",
        )
    if any(linear.name == head for linear in quantized_modules(architecture, job)):
        raise UnsupportedError(
            f"the stack {job.stack} takes the weight of {head} as it is, but it is quantized",
            hint=f"add {head} to skip_modules",
        )
