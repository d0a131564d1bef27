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
        _Gap(job.effective_quant == "int8", "the step of an int8 base (Linear8bitLt)", "use --quant nf4"),
        _Gap(job.attention == "flash_attention_2", "flash_attention_2", "use --attention sdpa, which runs the same kernel"),
        _Gap(job.loss != "standard", f"the loss {job.loss!r}", "use --loss standard"),
        _Gap(job.dora, "DoRA's step", "set dora = false"),
        _Gap(bool(plan.saved), "training modules_to_save", "leave modules_to_save out"),
        _Gap(bool(plan.biases), "training biases of the base model", "set bias = none"),
        _Gap(
            any(adapted.kind != "linear" for adapted in plan.adapted),
            "the step of an adapter on an embedding or on fused experts",
            "target linears only",
        ),
        _Gap(
            job.compute_dtype == "fp16" or job.dtype == "fp16",
            "fp16 training with its loss scaling",
            "use bf16, whose tensors have the same sizes",
        ),
    )  # fmt: skip
    for gap in gaps:
        if gap.asked:
            raise UnsupportedError(f"{gap.what} is not modelled yet", hint=gap.instead)
