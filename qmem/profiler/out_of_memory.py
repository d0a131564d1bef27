"""Which errors say that a device's memory is at its end, whoever raises them."""

TEXTS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "NVML_SUCCESS == r INTERNAL ASSERT",
         "out of memory", "CUDA error 2 ")  # fmt: skip
"""Where memory ends outside torch's allocator: cuBLAS and cuDNN handles, torch's own report on MIG (vllm#39874), and
bitsandbytes' managed memory."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that the device's memory is at its end."""
    import torch  # noqa: PLC0415

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)
