"""A job from the objects users already have.

peft's ``LoraConfig``, transformers' ``BitsAndBytesConfig`` and ``TrainingArguments`` and TRL's ``SFTConfig`` are
read by attribute; none of their libraries is imported.  What is set on them, would change memory and has no place
in a job is refused by name.  The two configurations are closed worlds: an attribute that this file does not know
and that is switched on is refused as well, because new versions bring new kinds of adapters.

Attributes and defaults as in peft 0.21.2 (``tuners/lora/config.py``), transformers 5.23.0
(``utils/quantization_config.py``, ``training_args.py``) and TRL 1.16.0 (``trainer/sft_config.py``).
"""

from typing import Any

from qmem.errors import UnsupportedError, UsageError
from qmem.job.job import DTYPE_ALIASES, Job, make_job

LORA_FIELDS = (
    ("r", "rank"),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("bias", "bias"),
    ("use_rslora", "rslora"),
    ("use_dora", "dora"),
)
LORA_READ = (*(name for name, _ in LORA_FIELDS), "target_modules", "modules_to_save", "peft_type", "task_type",
             "init_lora_weights", "runtime_config")  # fmt: skip
LORA_WITHOUT_BYTES = (
    "alpha_pattern",  # scales an adapter, whatever its rank
    "fan_in_fan_out",  # how the base weight is stored, same elements
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version",  # provenance
    "layers_pattern",  # says how layers_to_transform finds its layers; that one is refused
    "qalora_group_size", "megatron_core",  # read only with use_qalora and megatron_config; those are refused
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # read only by an initialisation that is refused
)  # fmt: skip
LORA_INITIALISATIONS = (True, False, "gaussian")
"""Initialisations that fill the adapter in place.  The others decompose or change the base, or freeze a factor."""

QUANTIZATION_READ = ("quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit",
                     "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype",
                     "bnb_4bit_quant_storage", "llm_int8_skip_modules", "llm_int8_threshold")  # fmt: skip
INT8_THRESHOLD = 6.0
"""Where bitsandbytes takes outliers out of an int8 product, as ``BitsAndBytesConfig`` has it by default."""

ARGUMENTS_AT_REST: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("deepspeed", (None,)),
    ("fsdp", (None, "", [], False)),
    ("parallelism_config", (None,)),
    ("torch_compile", (False,)),
    ("half_precision_backend", ("auto", "cuda_amp")),
    ("use_liger_kernel", (False,)),
    ("auto_find_batch_size", (False,)),
    ("torch_empty_cache_steps", (None,)),
    ("label_smoothing_factor", (0, 0.0)),
    ("neftune_noise_alpha", (None,)),
    ("use_cache", (False,)),
    ("optim_args", (None, "")),
    ("optim_target_modules", (None,)),
    ("full_determinism", (False,)),  # sets CUBLAS_WORKSPACE_CONFIG (trainer_utils.py)
    # TRL's own
    ("padding_free", (False,)),
    ("activation_offloading", (False,)),
    ("loss_type", ("nll",)),
    ("router_aux_loss_coef", (None, 0.0)),
    ("pad_to_multiple_of", (None, 1)),
)
"""Training arguments that change memory and that a job cannot carry, with the values at which they do nothing.

``use_cpu`` is not among them: without a GPU transformers builds arguments with ``bf16=True`` only beside it, and a
job is planned for a GPU wherever it was described.
"""

MODEL_KEYWORDS = (("dtype", "dtype"), ("torch_dtype", "dtype"), ("attn_implementation", "attention"))
"""Keywords of ``from_pretrained`` in ``SFTConfig.model_init_kwargs`` that a job can carry, and its fields."""

CHECKPOINTING_KEYWORDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("use_reentrant", (True, False, None)),
    ("every_n_layers", (1,)),
    ("offload", (False,)),
)
"""Keywords of checkpointing that a job can carry, with the values that it can."""


def job_from_objects(
    model: str,
    *,
    lora_config: Any = None,
    quantization_config: Any = None,
    training_arguments: Any = None,
    **fields: Any,
) -> Job:
    """The job that these objects describe; ``fields`` are fields of ``Job`` and win over the objects.

    The method follows from what is there: a quantized base with an adapter is qlora, an adapter alone lora, neither
    full.  An ``SFTConfig`` means the stack ``trl``.  What the objects do not say (the dtype of the loaded weights,
    the attention, the sequence of a ``TrainingArguments``) has the default of ``Job`` unless ``fields`` say it.
    Evaluation is no part of a job; a warning says so where the arguments ask for one.

    Raises:
        UsageError: the objects contradict each other or leave open what they must say.
        UnsupportedError: something is set that changes memory and that a job cannot carry.
    """
    if lora_config is None and quantization_config is None and training_arguments is None:
        raise UsageError("no object was given to read a job from", hint="use qmem.Job(model=..., rank=...)")
    read: dict[str, Any] = {"method": _method(lora_config, quantization_config)}
    if lora_config is not None:
        read |= _adapter(lora_config, fields)
    if quantization_config is not None:
        read |= _quantization(quantization_config)
    if training_arguments is not None:
        read |= _step(training_arguments, fields)
        read |= _autocast(training_arguments, read.get("compute_dtype"), fields)
    facts = {**read.pop("facts", {}), **fields.pop("facts", {})}
    return make_job({"model": model, **read, "facts": facts, **fields})


def _method(lora_config: Any, quantization_config: Any) -> str:
    if lora_config is None and quantization_config is not None:
        raise UsageError(
            "quantization_config without lora_config: a quantized base cannot be trained by itself",
            hint="give the LoraConfig of the adapter, or leave quantization_config out",
        )
    if lora_config is None:
        return "full"
    return "lora" if quantization_config is None else "qlora"


def _adapter(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """What a ``LoraConfig`` says."""
    _refuse_other_adapters(config)
    for name, setting in vars(config).items():
        if name not in LORA_READ and name not in LORA_WITHOUT_BYTES and setting:
            raise _cannot_carry("LoraConfig", name, setting)
    read = {field: getattr(config, name) for name, field in LORA_FIELDS if hasattr(config, name)}
    read["modules_to_save"] = tuple(config.modules_to_save or ())
    return read if "targets" in fields else {**read, "targets": _targets(config.target_modules)}


def _refuse_other_adapters(config: Any) -> None:
    kind = _name(config.peft_type)
    if kind != "LORA":
        raise UnsupportedError(f"{type(config).__name__} is an adapter of type {kind}", hint="only LoRA is modelled")
    if _name(config.task_type) not in (None, "CAUSAL_LM"):
        raise _cannot_carry("LoraConfig", "task_type", _name(config.task_type))
    if config.init_lora_weights not in LORA_INITIALISATIONS:
        raise _cannot_carry("LoraConfig", "init_lora_weights", config.init_lora_weights)
    if getattr(getattr(config, "runtime_config", None), "ephemeral_gpu_offload", False):
        raise _cannot_carry("LoraConfig", "runtime_config.ephemeral_gpu_offload", setting=True)


def _targets(targets: Any) -> str | tuple[str, ...]:
    """A list or set as sorted names (peft keeps a set), a regular expression or ``all-linear`` as it stands."""
    if targets is None:
        raise UsageError(
            "LoraConfig.target_modules is None: peft would choose by its own table of architectures",
            hint="name them, for example target_modules='all-linear', or pass targets=...",
        )
    return targets if isinstance(targets, str) else tuple(sorted(targets))


def _quantization(config: Any) -> dict[str, Any]:
    """What a ``BitsAndBytesConfig`` says."""
    method = _name(getattr(config, "quant_method", None))
    if method != "bitsandbytes":
        raise UnsupportedError(f"{type(config).__name__} quantizes with {method}", hint="only bitsandbytes is modelled")
    for name, setting in vars(config).items():
        if name not in QUANTIZATION_READ and setting:
            raise _cannot_carry("BitsAndBytesConfig", name, setting)
    if config.load_in_8bit:
        if config.llm_int8_threshold != INT8_THRESHOLD:
            raise _cannot_carry("BitsAndBytesConfig", "llm_int8_threshold", config.llm_int8_threshold)
        return {"quant": "int8", **_skipped(config)}
    if not config.load_in_4bit:
        raise UsageError("the quantization_config loads in neither 4 nor 8 bit", hint="set load_in_4bit=True")
    return {
        "quant": config.bnb_4bit_quant_type,
        "double_quant": config.bnb_4bit_use_double_quant,
        "compute_dtype": _dtype(config.bnb_4bit_compute_dtype),
        "quant_storage": _dtype(config.bnb_4bit_quant_storage),
        **_skipped(config),
    }


def _skipped(config: Any) -> dict[str, Any]:
    skipped = config.llm_int8_skip_modules
    if skipped is None:
        return {}
    if not skipped:
        # transformers' default (leave out the head) holds only while the list is None (quantizers/base.py).
        raise _cannot_carry("BitsAndBytesConfig", "llm_int8_skip_modules", skipped)
    return {"skip_modules": tuple(skipped)}


def _step(arguments: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """What ``TrainingArguments`` say, but for the autocast."""
    for name, at_rest in ARGUMENTS_AT_REST:
        if getattr(arguments, name, at_rest[0]) not in at_rest:
            raise _cannot_carry(type(arguments).__name__, name, getattr(arguments, name))
    _refuse_flattened_packing(arguments)
    _warn_of_evaluation(arguments)
    read: dict[str, Any] = {
        "batch": arguments.per_device_train_batch_size,
        "grad_accum": arguments.gradient_accumulation_steps,
        "optimizer": _name(arguments.optim),
    }
    return {**read, **_checkpointing(arguments), **_supervised(arguments, fields), **_loading(arguments)}


def _refuse_flattened_packing(arguments: Any) -> None:
    if getattr(arguments, "packing", False) and getattr(arguments, "packing_strategy", "bfd") != "wrapped":
        raise _cannot_carry(type(arguments).__name__, "packing_strategy", getattr(arguments, "packing_strategy", "bfd"))


def _warn_of_evaluation(arguments: Any) -> None:
    if _name(getattr(arguments, "eval_strategy", "no")) != "no":
        import warnings  # noqa: PLC0415 - rare

        warnings.warn("evaluation is asked for, but a job describes the training steps only", stacklevel=4)


def _checkpointing(arguments: Any) -> dict[str, Any]:
    """Since 5.23 transformers reads ``activation_checkpointing``, before that ``gradient_checkpointing``."""
    prefix = "activation" if hasattr(arguments, "activation_checkpointing") else "gradient"
    if not getattr(arguments, f"{prefix}_checkpointing"):
        return {"checkpointing": False}
    keywords = getattr(arguments, f"{prefix}_checkpointing_kwargs", None) or {}
    known = dict(CHECKPOINTING_KEYWORDS)
    for name, setting in keywords.items():
        if setting not in known.get(name, ()):
            raise _cannot_carry(type(arguments).__name__, f"{prefix}_checkpointing_kwargs[{name!r}]", setting)
    reentrant = keywords.get("use_reentrant")
    facts = {} if reentrant is None else {"reentrant": "yes" if reentrant else "no"}
    return {"checkpointing": True, "facts": facts}


def _supervised(arguments: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The sequence (``max_length``, before TRL 0.20 ``max_seq_length``) and the stack of an ``SFTConfig``."""
    name = "max_length" if hasattr(arguments, "max_length") else "max_seq_length"
    if not hasattr(arguments, name):
        return {}
    seq = getattr(arguments, name)
    if seq is None and "seq" not in fields:
        raise UsageError(
            f"{type(arguments).__name__}.{name} is None: sequences are as long as the data has them",
            hint="pass seq=... with the longest one",
        )
    return {"stack": "trl"} if seq is None else {"stack": "trl", "seq": seq}


def _loading(arguments: Any) -> dict[str, Any]:
    """What an ``SFTConfig`` loads the model with."""
    known = dict(MODEL_KEYWORDS)
    read = {}
    for name, setting in (getattr(arguments, "model_init_kwargs", None) or {}).items():
        if name not in known:
            raise _cannot_carry(type(arguments).__name__, f"model_init_kwargs[{name!r}]", setting)
        read[known[name]] = _dtype(setting) if known[name] == "dtype" else setting
    return read


def _autocast(arguments: Any, quantized_compute: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """``bf16`` and ``fp16`` switch autocast on; its dtype must be the one that 4-bit products compute in."""
    dtype = "fp16" if arguments.fp16 else "bf16" if arguments.bf16 else None
    environment = getattr(arguments, "mixed_precision", "no")
    if dtype is None and environment != "no":
        raise _cannot_carry("ACCELERATE_MIXED_PRECISION with TrainingArguments", "mixed_precision", environment)
    if dtype is None:
        return {"amp": False}
    if quantized_compute not in (None, dtype) and "compute_dtype" not in fields:
        raise UnsupportedError(
            f"autocast runs in {dtype}, but bnb_4bit_compute_dtype is {quantized_compute}: a job has one compute dtype",
            hint=f"set bnb_4bit_compute_dtype to {dtype}, or pass compute_dtype=...",
        )
    return {"amp": True, "compute_dtype": dtype}


def _dtype(dtype: Any) -> str:
    """``torch.bfloat16`` → ``bf16``, without torch."""
    name = str(dtype)
    return DTYPE_ALIASES.get(name, name.removeprefix("torch."))


def _name(member: Any) -> Any:
    """The string of a library's enumeration member."""
    return getattr(member, "value", member)


def _cannot_carry(owner: str, name: str, setting: Any) -> UnsupportedError:
    return UnsupportedError(
        f"{owner}.{name} is {setting!r:.60}, which changes memory and is not modelled",
        hint="plan the job without it",
    )
