"""What a job can ask for and the walk does not do yet.  It is refused by name, never approximated in silence."""

from typing import NamedTuple

from qmem.architecture import AdapterPlan, Architecture
from qmem.catalogue.stacks import StackFacts
from qmem.errors import UnsupportedError
from qmem.estimator.paper import NEWEST
from qmem.job import Job

UNDER_OLDER_LIBRARIES = ("gpt_bigcode", "llama", "mistral", "qwen2")
"""Families whose step was compared with recordings under older libraries too."""


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
            _scales_16bit_gradients(job, facts),
            "unscaling 16-bit gradients, which torch refuses too,",
            "train fp32 parameters (adapter_dtype or dtype fp32), or compute in bf16",
        ),
        _Gap(bool(plan.biases), "training biases of the base model", "set bias = none"),
        _Gap(
            any(adapted.kind == "embedding" for adapted in plan.adapted),
            "the step of an adapter on an embedding",
            "target linears only",
        ),
    )  # fmt: skip
    _refuse(gaps)


def check_older(job: Job, family: str, facts: StackFacts) -> None:
    """Refuse under older libraries what was not compared with a recording of theirs.

    Raises:
        UnsupportedError: naming the first such thing.
    """
    if facts.older == NEWEST:
        return
    here = f"under {facts.name}"
    newest = f"use --stack {job.stack.partition('@')[0]}"
    _refuse((
        _Gap(family not in UNDER_OLDER_LIBRARIES, f"the step of {family} {here}", newest),
        _Gap(job.attention != "sdpa", f"{job.attention} attention {here}", "use --attention sdpa"),
        _Gap(job.effective_quant == "int8", f"int8 {here}", "use --quant nf4"),
        _Gap(job.dora, f"DoRA {here}", "leave dora out"),
        _Gap("fp16" in (job.compute_dtype, job.dtype), f"fp16 {here}", "compute in bf16"),
        _Gap(bool(job.modules_to_save), f"modules_to_save {here}", "leave modules_to_save out"),
    ))  # fmt: skip


def _refuse(gaps: tuple[_Gap, ...]) -> None:
    for gap in gaps:
        if gap.asked:
            raise UnsupportedError(f"{gap.what} is not modelled yet", hint=gap.instead)


def check_scored(architecture: Architecture) -> None:
    """Refuse what a fused head's trainer adds to the loss of a model with experts.

    Source: trl 1.16.0 ``trainer/sft_trainer.py`` (``aux_loss_enabled``).

    Raises:
        UnsupportedError: naming it.
    """
    if any(parameter.role == "router" for parameter in architecture.parameters):
        raise UnsupportedError(
            "the load-balancing loss that SFTTrainer adds for experts is not modelled yet", hint="use --stack hf"
        )


def _scales_16bit_gradients(job: Job, facts: StackFacts) -> bool:
    """Source: torch 2.14.1 ``amp/grad_scaler.py`` (``_unscale_grads_``) for fp16; its kernel does not know bf16."""
    trained = facts.adapter_dtype if job.has_adapter else job.dtype
    return facts.trainer_loop and facts.autocast and job.compute_dtype == "fp16" and trained != "fp32"
