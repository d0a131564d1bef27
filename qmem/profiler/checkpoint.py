"""Loading by the library's own ``from_pretrained``: of a local checkpoint, or of one that holds zeros only.

The checkpoint of zeros is a safetensors file with a true header and a hole for the tensors, so it takes no disk; what
the library does while it loads, and so the peak of the phase, is its own.  Nothing is downloaded.
"""

import json
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from qmem.architecture import Parameter, describe
from qmem.catalogue import dtype_bytes
from qmem.job import Job
from qmem.profiler.build import NOT_FIELDS, class_of, dtype_keyword, quantization_config, torch_dtype

SAFETENSORS_DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
SHARD_BYTES = 5 * 10**9
"""The shard size of transformers 4 and 5 when they save (``save_pretrained``): a load holds one shard at a time."""


def load_checkpoint(job: Job, folder: str) -> Any:
    """The model of a local checkpoint on the current device, quantized as the job says."""
    from transformers import AutoConfig  # noqa: PLC0415

    family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    model = class_of(family).from_pretrained(
        folder,
        quantization_config=quantization_config(job),
        device_map={"": 0},
        attn_implementation=job.attention,
        local_files_only=True,
        **{dtype_keyword(): torch_dtype(job.dtype)},
    )
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad = job.method == "full"
    return model


def load_zeros(job: Job, config: dict[str, Any]) -> Any:
    """The model of a config.json, loaded from a checkpoint of zeros."""
    with TemporaryDirectory() as folder:
        write_zeros(Path(folder), job, config)
        return load_checkpoint(job, folder)


def write_zeros(folder: Path, job: Job, config: dict[str, Any]) -> None:
    """Write ``config.json``, shards of zeros and their index, in the dtype of the job.

    Experts stand as single matrices in checkpoints, whatever the library makes of them in memory.
    """
    kept = {name: value for name, value in config.items() if name not in NOT_FIELDS}
    written = {**kept, "model_type": config["model_type"], "dtype": torch_dtype(job.dtype).__str__().split(".")[-1]}
    (folder / "config.json").write_text(json.dumps(written))
    shards = list(_shards(describe(config, fused_experts=False).parameters, dtype_bytes(job.dtype)))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, job)
        index |= {parameter.name: name for parameter in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _shards(parameters: tuple[Parameter, ...], element_bytes: int) -> Iterator[list[Parameter]]:
    """The parameters in order, a new shard where the one before would grow beyond its size."""
    shard: list[Parameter] = []
    held = 0
    for parameter in parameters:
        n_bytes = parameter.numel * element_bytes
        if shard and held + n_bytes > SHARD_BYTES:
            yield shard
            shard, held = [], 0
        shard.append(parameter)
        held += n_bytes
    yield shard


def _write_shard(file: IO[bytes], shard: list[Parameter], job: Job) -> None:
    """The header (length, JSON padded to 8 bytes), then a hole.  Format: huggingface/safetensors README."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for parameter in shard:
        first, end = end, end + prod(parameter.shape) * dtype_bytes(job.dtype)
        header[parameter.name] = {
            "dtype": SAFETENSORS_DTYPES[job.dtype], "shape": list(parameter.shape), "data_offsets": [first, end]
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.flush()
    os.ftruncate(file.fileno(), 8 + len(text) + end)
