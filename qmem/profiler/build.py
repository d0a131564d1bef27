"""The model on the device: from its config with weights made there, or from a checkpoint by ``from_pretrained``.

Weights are made one by one in the order of ``named_modules``, and quantized by bitsandbytes' own kernels as each is
made; none is ever on the host.  It knows shapes and classes, and nothing of adapters and steps.
"""

from collections.abc import Callable
from typing import Any

from qmem.architecture import auto_class
from qmem.errors import UnavailableError, UnsupportedError
from qmem.job import Job

TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "uint8": "uint8"}


def torch_dtype(name: str) -> Any:
    """``torch.bfloat16`` for ``bf16``."""
    import torch  # noqa: PLC0415

    return getattr(torch, TORCH_DTYPES[name])


def quantization_config(job: Job) -> Any:
    """The ``BitsAndBytesConfig`` of the job; ``None`` where the base is not quantized."""
    if job.effective_quant == "none":
        return None
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    skipped = list(job.skip_modules) or None
    if job.effective_quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=job.effective_quant,
        bnb_4bit_use_double_quant=job.double_quant,
        bnb_4bit_compute_dtype=torch_dtype(job.compute_dtype),
        bnb_4bit_quant_storage=torch_dtype(job.quant_storage),
        llm_int8_skip_modules=skipped,
    )


def build_on_device(job: Job, config: dict[str, Any], begun: Callable[[Any], None]) -> Any:
    """The model of a config.json on the current device, with made-up weights.

    ``begun`` is called with the model while its weights are still to be made.
    """
    model = _skeleton(job, config)
    quantizer = _quantizer(job)
    if quantizer is not None:
        quantizer.preprocess_model(model=model, device_map=None)
    begun(model)
    _materialize(model, job)
    if quantizer is not None:
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model=model)
    return model


def _skeleton(job: Job, config: dict[str, Any]) -> Any:
    """The model on the meta device: shapes without memory."""
    import torch  # noqa: PLC0415
    from transformers import AutoConfig  # noqa: PLC0415

    parsed = AutoConfig.for_model(config["model_type"], **_fields(config))
    if parsed.is_encoder_decoder and getattr(parsed, "decoder_start_token_id", None) is None:
        # Which token stands first decides no size; T5's own is its padding.
        parsed.decoder_start_token_id = parsed.pad_token_id
    dtype = {dtype_keyword(): torch_dtype(job.dtype)}
    with torch.device("meta"):
        model: Any = class_of(config["model_type"]).from_config(parsed, attn_implementation=job.attention, **dtype)
    return model.eval()


def class_of(family: str) -> Any:
    """The class of transformers that builds the family with the head that it is trained with."""
    import transformers  # noqa: PLC0415

    return getattr(transformers, auto_class(family))


def check_attention(job: Job, config: dict[str, Any]) -> None:
    """Raise where transformers does not build the family with the job's attention, in words of qmem's own.

    Raises:
        UnsupportedError: the family has no sdpa: Gemma-2 caps its scores, which sdpa cannot.
        UnavailableError: flash-attn is not installed.
    """
    import transformers  # noqa: PLC0415
    from transformers.utils.import_utils import is_flash_attn_2_available  # noqa: PLC0415

    family = config["model_type"]
    parsed = transformers.AutoConfig.for_model(family, **_fields(config))
    model_class: Any = class_of(family)._model_mapping[type(parsed)]  # noqa: SLF001
    if job.attention == "sdpa" and not model_class._supports_sdpa:  # noqa: SLF001 - there is no public way to ask
        raise UnsupportedError(
            f"transformers {transformers.__version__} does not run {family} with sdpa", hint="use --attention eager"
        )
    if job.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UnavailableError(
            "flash_attention_2 needs the package flash-attn, which is not installed here or does not fit the GPU",
            hint="use --attention sdpa, which runs the same kernel where no mask is passed",
        )


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in NOT_FIELDS}


NOT_FIELDS = ("model_type", "architectures", "torch_dtype", "dtype", "quantization_config", "auto_map",
               "transformers_version", "_name_or_path")  # fmt: skip
"""Keys of a config.json that say where it comes from or how a checkpoint is stored, not what the model is."""


def dtype_keyword() -> str:
    """The keyword of ``from_pretrained`` for the dtype, which transformers 4.56 renamed."""
    import transformers  # noqa: PLC0415

    major, minor = map(int, transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _quantizer(job: Job) -> Any:
    settings = quantization_config(job)
    if settings is None:
        return None
    from transformers.quantizers.auto import AutoHfQuantizer  # noqa: PLC0415

    return AutoHfQuantizer.from_config(settings, pre_quantized=False)


def _materialize(model: Any, job: Job) -> None:
    """Give every parameter and buffer its memory; what is tied or shared is made once."""
    made: dict[int, Any] = {}
    # A meta tensor that dies would give its identity to the next one.
    originals: list[Any] = []
    for _, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                originals.append(parameter)
                made[id(parameter)] = _made(module, name, parameter, job)
            setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if id(buffer) not in made:
                originals.append(buffer)
                made[id(buffer)] = _buffer_like(buffer)
            module._buffers[name] = made[id(buffer)]  # noqa: SLF001 - keeps the buffer non-persistent


def _made(module: Any, name: str, parameter: Any, job: Job) -> Any:
    import torch  # noqa: PLC0415

    kind = type(parameter).__name__
    if kind == "Params4bit":
        return _packed_4bit(module, parameter, job)
    if kind == "Int8Params":
        return _packed_8bit(module, parameter, job)
    weight = _filled(parameter.shape, torch_dtype(job.dtype), ones=name == "weight")
    return torch.nn.Parameter(weight, requires_grad=job.method == "full")


def _filled(shape: Any, dtype: Any, *, ones: bool) -> Any:
    """Values like those of a model at its start, so that a real GPU meets no infinity: norms 1, biases 0."""
    import torch  # noqa: PLC0415

    tensor = torch.empty(shape, dtype=dtype, device="cuda")
    if len(shape) > 1:
        return tensor.normal_(std=0.02)
    return tensor.fill_(1.0 if ones else 0.0)


def _packed_4bit(module: Any, parameter: Any, job: Job) -> Any:
    """``Params4bit`` of a weight that is made, quantized and dropped at once."""
    from bitsandbytes.nn.modules import Params4bit  # noqa: PLC0415

    weight = _filled(_shape_of(module, parameter), torch_dtype(job.dtype), ones=False)
    packed: Any = Params4bit(
        weight, requires_grad=False, blocksize=job.block_size, compress_statistics=job.double_quant,
        quant_type=job.effective_quant, quant_storage=torch_dtype(job.quant_storage), module=module,
    )  # fmt: skip
    # Its .to() is for weights that come from the host.
    packed._quantize("cuda")  # noqa: SLF001
    module.quant_state = packed.quant_state
    return packed


def _packed_8bit(module: Any, parameter: Any, job: Job) -> Any:
    from bitsandbytes.nn.modules import Int8Params  # noqa: PLC0415

    weight = _filled(_shape_of(module, parameter), torch_dtype(job.dtype), ones=False)
    packed: Any = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    packed._quantize("cuda")  # noqa: SLF001 - its .to() is for weights that come from the host
    return packed


def _shape_of(module: Any, parameter: Any) -> tuple[int, int]:
    """Rows and columns of a quantized linear; a replaced ``Conv1D`` has its own the other way round, like this."""
    if not hasattr(module, "out_features"):
        raise UnsupportedError(f"{type(module).__name__} holds a {type(parameter).__name__}, which is not known")
    return module.out_features, module.in_features


def _buffer_like(buffer: Any) -> Any:
    """Zeros on the device: the values of rotary frequencies and masks decide no size."""
    import torch  # noqa: PLC0415

    return torch.zeros(buffer.shape, dtype=buffer.dtype, device="cuda")
