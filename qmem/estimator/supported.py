"""What a job can ask for and the walk does not do yet.  It is refused by name, never approximated in silence."""

from typing import NamedTuple

from qmem.architecture import AdapterPlan
from qmem.catalogue.stacks import StackFacts
from qmem.errors import UnsupportedError
from qmem.job import Job


class _Gap(NamedTuple):
    """A part of the step that is not walked: when it is asked for, and what to do instead."""

    asked: bool
    what: str
    instead: str


def check_supported(job: Job, plan: AdapterPlan, facts: StackFacts) -> None:
    """Refuse what the walk of the training step does not do yet.

    Raises:
        UnsupportedError: naming the first such thing.
    """
    gaps = (
        _Gap(job.dora and job.effective_quant == "int8", "DoRA on an int8 base", "use --quant nf4"),
        _Gap(
            job.attention == "flash_attention_2",
            "flash_attention_2",
            "use --attention sdpa, which runs the same kernel",
        ),
        _Gap(job.loss != "standard", f"the loss {job.loss!r}", "use --loss standard"),
        _Gap(
            any(copy.role not in ("embedding", "head") for copy in plan.saved),
            "training modules_to_save other than the embedding and the head",
            "name only these two",
        ),
        _Gap(
            _scales_fp16_gradients(job, facts),
            "unscaling fp16 gradients, which torch refuses too,",
            "train fp32 parameters (adapter_dtype or dtype fp32), or compute in bf16",
        ),
        _Gap(bool(plan.biases), "training biases of the base model", "set bias = none"),
        _Gap(
            any(adapted.kind != "linear" for adapted in plan.adapted),
            "the step of an adapter on an embedding or on fused experts",
            "target linears only",
        ),
    )  # fmt: skip
    for gap in gaps:
        if gap.asked:
            raise UnsupportedError(f"{gap.what} is not modelled yet", hint=gap.instead)


def _scales_fp16_gradients(job: Job, facts: StackFacts) -> bool:
    """Source: torch 2.14.1 ``amp/grad_scaler.py`` (``_unscale_grads_``): "Attempting to unscale FP16 gradients."."""
    trained = facts.adapter_dtype if job.has_adapter else job.dtype
    return facts.trainer_loop and facts.autocast and job.compute_dtype == "fp16" and trained == "fp16"
