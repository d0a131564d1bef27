"""The model made ready for training, as the stack's facts say: k-bit preparation, adapter, checkpointing.

Each fact is carried out by the library's own function where there is one.  It knows models and peft, not loops.
"""

from typing import Any

from qmem.architecture import CAUSAL, Architecture, auto_class
from qmem.catalogue.stacks import StackFacts
from qmem.job import Job
from qmem.profiler.build import torch_dtype


def prepare_for_kbit_training(model: Any, job: Job, facts: StackFacts, architecture: Architecture) -> Any:
    """What peft does to a quantized base, or the same with one of its two casts left out."""
    keywords = {"use_reentrant": facts.reentrant}
    if facts.cast_norms and facts.cast_embeddings:
        from peft import prepare_model_for_kbit_training  # noqa: PLC0415

        return prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
            model, use_gradient_checkpointing=job.checkpointing, gradient_checkpointing_kwargs=keywords
        )
    _cast_some(model, facts, architecture)
    if job.checkpointing:
        if facts.reentrant:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)
    return model


def _cast_some(model: Any, facts: StackFacts, architecture: Architecture) -> None:
    """The casts of peft 0.21.2 ``prepare_model_for_kbit_training``, for norms or embeddings alone."""
    import torch  # noqa: PLC0415

    embeddings = (f"{architecture.embedding}.", f"{architecture.head}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = False
        wanted = facts.cast_embeddings if name.startswith(embeddings) else facts.cast_norms
        is_16bit = parameter.dtype in (torch.float16, torch.bfloat16)
        if wanted and is_16bit and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.to(torch.float32)
    if _clears_cache():
        torch.cuda.empty_cache()


def _clears_cache() -> bool:
    """Whether the installed peft empties the allocator's cache after the casts: 0.13.2 does not, 0.21.2 does."""
    from inspect import signature  # noqa: PLC0415

    from peft import prepare_model_for_kbit_training  # noqa: PLC0415

    return "auto_clear_cache" in signature(prepare_model_for_kbit_training).parameters


TASK_TYPES = {CAUSAL: "CAUSAL_LM", "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM"}
"""What peft calls a task.  It has no name for masked language models, and needs none."""


def add_adapter(model: Any, job: Job, facts: StackFacts) -> Any:
    """``get_peft_model``; what dtype the adapters have is the stack's.

    Where the stack's trainer casts them itself they are left as peft makes them by default.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    settings = LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=job.targets if isinstance(job.targets, str) else list(job.targets),
        modules_to_save=list(job.modules_to_save) or None,
        bias=job.bias,
        use_rslora=job.rslora,
        use_dora=job.dora,
        task_type=TASK_TYPES.get(auto_class(model.config.model_type)),
    )
    model = get_peft_model(model, settings, autocast_adapter_dtype=facts.sft_cast or facts.adapter_dtype == "fp32")
    if not facts.sft_cast:
        cast_adapters(model, facts)
    return model


def cast_adapters(model: Any, facts: StackFacts) -> None:
    """Cast adapters of another dtype than the stack's: peft casts 16-bit ones to fp32 and nothing else.

    Where the stack's trainer casts, it leaves DoRA's magnitudes alone, and so they are here.
    """
    dtype = torch_dtype(facts.adapter_dtype)
    for name, parameter in model.named_parameters():
        spared = facts.sft_cast and "lora_magnitude_vector" in name
        if ".lora_" in name and parameter.dtype != dtype and not spared:
            parameter.data = parameter.data.to(dtype)


def enable_checkpointing(model: Any, job: Job, facts: StackFacts) -> None:
    """Gradient checkpointing, and a gradient for the input where the embedding is frozen."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": facts.reentrant})
    if job.has_adapter:
        model.enable_input_require_grads()
