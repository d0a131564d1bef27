"""The job: names and numbers of what is asked.

A job knows nothing of shapes, GPUs or libraries.  What needs a model's shapes (does a target match, is the
rank possible) is checked by ``qmem.architecture``; what needs a software stack by ``qmem.catalogue``.
"""

from typing import Any, Literal

import msgspec

from qmem.errors import UnsupportedError, UsageError

Method = Literal["qlora", "lora", "full"]
Quant = Literal["nf4", "fp4", "int8", "none"]
Dtype = Literal["bf16", "fp16", "fp32"]
StorageDtype = Literal["uint8", "bf16", "fp16", "fp32"]
Attention = Literal["eager", "sdpa", "flash_attention_2"]
Loss = Literal["standard", "fused_linear", "chunked"]
Bias = Literal["none", "all", "lora_only"]
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_32bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "adafactor",
    "sgd",
]
"""transformers' own names (``transformers.training_args.OptimizerNames``).

Only ``adamw_32bit`` has no name there: it is ``bitsandbytes.optim.AdamW32bit``, which a bare loop can use.
"""

OPTIMIZER_ALIASES = {"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit", "lion": "lion_32bit",
                     "paged_lion": "paged_lion_32bit"}  # fmt: skip
"""Other spellings that transformers accepts for the same optimizer."""

DTYPE_ALIASES: dict[str, Dtype] = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32",
    "torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32",
}  # fmt: skip
"""torch's names for the dtypes of a job."""

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Block sizes of bitsandbytes' 4-bit kernels (bitsandbytes 0.50.2, ``functional.quantize_4bit``)."""


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fine-tuning job.  Immutable; every field but ``model`` has the default of the common QLoRA recipe.

    ``None`` means that the method or the software stack decides (see ``effective_quant`` and
    ``qmem.catalogue.stacks``).  Raises ``UsageError`` when fields contradict each other and
    ``UnsupportedError`` for what is not built yet.
    """

    model: str
    method: Method = "qlora"
    # base weights
    quant: Quant | None = None
    double_quant: bool = True
    block_size: int = 64
    quant_storage: StorageDtype = "uint8"
    skip_modules: tuple[str, ...] = ()
    dtype: Dtype = "bf16"
    compute_dtype: Dtype = "bf16"
    amp: bool | None = None
    # adapter
    rank: int = 8
    alpha: int = 8
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] = ()
    bias: Bias = "none"
    rslora: bool = False
    dora: bool = False
    adapter_dtype: Dtype | None = None
    # step
    optimizer: Optimizer = "paged_adamw_32bit"
    batch: int = 1
    grad_accum: int = 1
    seq: int = 2048
    checkpointing: bool = True
    attention: Attention = "sdpa"
    loss: Loss = "standard"
    # program and machine
    stack: str = "hf"
    facts: dict[str, str] = {}
    expandable_segments: bool = False
    alloc_conf: str = ""
    world_size: int = 1

    def __post_init__(self) -> None:
        _settle_types(self)
        _check_numbers(self)
        _check_method(self)

    @property
    def effective_quant(self) -> Quant:
        """What the base weights are stored in: ``quant``, or what the method means by itself."""
        return self.quant or ("nf4" if self.method == "qlora" else "none")

    @property
    def has_adapter(self) -> bool:
        """Whether the method trains an adapter instead of the model."""
        return self.method != "full"

    def replace(self, **changes: Any) -> "Job":
        """The same job with some fields changed, checked again."""
        return make_job({**msgspec.to_builtins(self), **changes})


def make_job(fields: dict[str, Any]) -> Job:
    """A job from plain values (flags, TOML, JSON).

    Raises:
        UsageError: an unknown field, a value of the wrong type, or fields that contradict each other.
    """
    unknown = sorted(set(fields) - set(Job.__struct_fields__))
    if unknown:
        known = ", ".join(Job.__struct_fields__)
        raise UsageError(f"a job has no field {unknown[0]!r}", hint=f"its fields are {known}")
    if "model" not in fields:
        raise UsageError("a job has no model", hint='write for example model = "Qwen3-14B"')
    return Job(**fields)


def assumed_defaults(job: Job) -> dict[str, Any]:
    """The fields that have their default value, in the order of the job: what a table must say it assumed."""
    default = Job(model=job.model)
    names = (name for name in Job.__struct_fields__ if name != "model")
    return {name: getattr(job, name) for name in names if getattr(job, name) == getattr(default, name)}


def _usual_name(field: str, value: Any) -> Any:
    """The name this project uses for a value that libraries spell in several ways."""
    if not isinstance(value, str):
        return value
    if field == "optimizer":
        return OPTIMIZER_ALIASES.get(value, value)
    return DTYPE_ALIASES.get(value, value) if field.endswith("dtype") or field == "quant_storage" else value


def _settle_types(job: Job) -> None:
    """Every field in its own type and spelling, however the job was made: a list of targets becomes a tuple."""
    for name, hint in Job.__annotations__.items():
        given = getattr(job, name)
        try:
            settled = msgspec.convert(_usual_name(name, given), hint)
        except msgspec.ValidationError as error:
            raise UsageError(_readable(name, given, hint, error)) from error
        if settled is not given:
            msgspec.structs.force_setattr(job, name, settled)


def _readable(name: str, given: Any, hint: Any, error: msgspec.ValidationError) -> str:
    """``rank is 'x': Expected `int`, got `str` ``, or the choices where there are some."""
    choices = _choices(hint)
    expected = f"must be one of {', '.join(choices)}" if choices else ""
    return f"{name} is {given!r}, but {expected}" if expected else f"{name} is {given!r}: {error}"


def _choices(hint: Any) -> list[str]:
    """The values a field can take where it is a choice among names, else nothing."""
    options = getattr(hint, "__args__", ())
    return [str(value) for value in options if isinstance(value, str)] or [
        str(value) for option in options for value in getattr(option, "__args__", ()) if isinstance(value, str)
    ]


def _check_numbers(job: Job) -> None:
    for name in ("rank", "alpha", "batch", "grad_accum", "seq", "world_size"):
        if getattr(job, name) < 1:
            raise UsageError(f"{name} is {getattr(job, name)}, but must be at least 1")
    if not 0 <= job.dropout < 1:
        raise UsageError(f"dropout is {job.dropout}, but must be at least 0 and below 1")
    if job.block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise UsageError(f"block_size is {job.block_size}, but bitsandbytes has kernels for {sizes} only")
    if job.world_size > 1:
        raise UnsupportedError(
            f"world_size is {job.world_size}, but only one GPU is modelled yet",
            hint="plan the job of one GPU with world_size = 1",
        )


def _check_method(job: Job) -> None:
    if job.method == "qlora" and job.quant == "none":
        raise UsageError("qlora trains an adapter on a quantized base, but quant is none", hint="use --method lora")
    if job.method != "qlora" and job.quant not in (None, "none"):
        raise UsageError(
            f"method {job.method} keeps its base in {job.dtype}, but quant is {job.quant}",
            hint="use --method qlora to train an adapter on a quantized base",
        )
    if not job.has_adapter:
        for name in ("adapter_dtype", "dora", "rslora", "modules_to_save"):
            if getattr(job, name):
                raise UsageError(f"{name} is set, but method full trains no adapter", hint="use --method lora or qlora")
    if isinstance(job.targets, tuple) and not job.targets:
        raise UsageError("targets is empty", hint="name modules (q_proj,v_proj), a regular expression, or all-linear")
