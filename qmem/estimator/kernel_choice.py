"""Which kernel a matrix product runs on where that decides what it allocates.

Owns two rules: bitsandbytes' choice between its fused 4-bit product (allocates nothing but its output) and
dequantizing first (allocates the whole weight in 16 bit), and the size of torch's cuBLAS workspace.  It knows
numbers only, no tensors and no tape.

Source of the first: bitsandbytes 0.50.2, ``backends/cuda/ops.py``: the CUDA kernel of ``bitsandbytes::gemm_4bit``
with ``_gemm_4bit_use_custom_cuda`` and ``_gemm_4bit_custom_max_m``.  The thresholds there are measured crossovers,
not formulas; they are restated here as one cap a tier.  Checked against the installed function itself
(``tests/estimator/test_kernel_choice.py``).  ROCm has another rule, which is not here.
"""

from collections.abc import Callable

from qmem.units import KIB, MIB

Capability = tuple[int, int]
"""A GPU's compute capability, ``(8, 0)`` for an A100."""

ALWAYS_FUSED_UP_TO = 4
NEVER_FUSED_ABOVE = 1536
SIMT_BELOW = 8
"""Rows of the input: below 5 always fused, above 1536 never, below 8 by the kernel without matrix instructions."""

TILE = 64
"""Output features one thread block of the fused kernel computes."""

SMALL_WEIGHT = 4 * 1024 * 1024
"""Elements below which a weight counts as small: its dequantization is mostly launch cost."""

NEVER = 0
"""A cap that no number of rows meets."""

Cap = Callable[[int, int, int, int], int]
"""Most rows that still run fused, from ``blocks`` (``ceil(n / 64)``), ``sms``, ``n`` and ``k``."""


def uses_fused_gemm_4bit(
    gpu_capability: Capability, sm_count: int, dtype: str, m: int, n: int, k: int, block_size: int = 64
) -> bool:
    """Whether an ``m x k`` input times an ``n x k`` 4-bit weight runs fused, so that no dequantized weight exists.

    Args:
        gpu_capability: compute capability of the card.
        sm_count: its streaming multiprocessors.
        dtype: of the input, ``bf16``, ``fp16`` or ``fp32``.
        m: rows of the input, batch x sequence.
        n: output features of the weight.
        k: input features of the weight.
        block_size: of the quantization; ``k`` must be a multiple of it for the fused kernel.
    """
    if m > NEVER_FUSED_ABOVE or k % block_size:
        return False
    if m <= ALWAYS_FUSED_UP_TO:
        return True
    if not _has_matrix_kernel(gpu_capability, dtype):
        return m < SIMT_BELOW
    if gpu_capability == (8, 7) or gpu_capability[0] == 11:
        return False  # not calibrated by bitsandbytes: it never takes the risk
    blocks = -(-n // TILE)
    if gpu_capability[0] == 10:
        return m <= _cap_sm100(blocks, sm_count, n, k)
    if n * k < SMALL_WEIGHT:
        return m <= _cap_small_weight(gpu_capability, m, blocks, sm_count, n, k)
    if m < SIMT_BELOW:
        return not _simt_loses(gpu_capability, m, blocks, sm_count, n, k)
    return m <= _cap_large_weight(gpu_capability)(blocks, sm_count, n, k)


def cublas_workspace_bytes(gpu_capability: Capability) -> int:
    """Bytes of the workspace that torch allocates for each cuBLAS handle at its first product, by architecture.

    32 MiB on Hopper, Blackwell and Thor (majors 9 to 12), else ``:4096:2:16:8``, that is 2 x 4096 KiB + 8 x 16 KiB
    = 8,519,680 B.  It comes from the caching allocator, one for each thread that multiplies on a stream (the main
    thread and autograd's), and stays.  ``CUBLAS_WORKSPACE_CONFIG`` replaces it, which is not modelled.

    The workspace is that of torch's ``aten/src/ATen/cuda/CublasHandlePool.cpp``.  The majors are as seen in torch
    2.14.1 (CUDA 13.0) on a simulated device of each capability from 7.0 to 13.0 that the tests list; not on real ones.
    """
    return 32 * MIB if 9 <= gpu_capability[0] <= 12 else (2 * 4096 + 8 * 16) * KIB


def _has_matrix_kernel(capability: Capability, dtype: str) -> bool:
    """Whether the fused kernel has a variant with matrix instructions: Turing for fp16 only, none for fp32."""
    if dtype == "fp32" or capability < (7, 5):
        return False
    return capability[0] > 7 or dtype == "fp16"


def _has_hbm(capability: Capability) -> bool:
    """A100 and Hopper: memory so fast that dequantizing is cheap."""
    return capability == (8, 0) or capability[0] == 9


def _cap_small_weight(capability: Capability, m: int, blocks: int, sms: int, n: int, k: int) -> int:
    """Below 4 Mi elements what counts is how much of the card the blocks fill, and how short ``k`` is."""
    if k * 2 < n:
        return _cap_small_short_k(capability, blocks, sms, k)
    quarter_full = blocks * 4 <= sms
    if capability == (8, 0) and quarter_full:
        if k < n:
            return 384
        return 32 if blocks * 8 <= sms else 128
    if capability == (7, 5) and blocks < sms and m > 8:
        return 64
    if quarter_full:
        return 32 if k < n or _has_hbm(capability) else 23
    return 16 if blocks * 2 <= sms else NEVER


def _cap_small_short_k(capability: Capability, blocks: int, sms: int, k: int) -> int:
    """Input features under half the output features: the fused kernel's latency wins by far."""
    if _has_hbm(capability):
        sparse = blocks * 3 < sms
        if capability == (8, 0):
            return 1536 if sparse else 512
        return 512 if sparse else 320
    if capability == (7, 5):
        if blocks >= sms * 3 or k < 704:
            return 320
        return 64 if k >= 1024 else 96
    if blocks < sms and blocks * k > sms * 320:
        return 192
    return 320


def _simt_loses(capability: Capability, m: int, blocks: int, sms: int, n: int, k: int) -> bool:
    """Where 6 or 7 rows dequantize although 5 and 8 may not: tall or square weights on a partly filled HBM card."""
    if not _has_hbm(capability) or m < 6 or blocks < (36 if capability[0] == 9 else 48):
        return False
    under_three_quarters = blocks * 4 < sms * 3
    under_three_fifths = blocks * 5 < sms * 3
    if k > n:
        return under_three_quarters
    if k < n:
        return False
    if capability == (8, 0):
        return under_three_fifths
    return under_three_quarters and not under_three_fifths


def _cap_large_weight(capability: Capability) -> Cap:
    """The tiers of an architecture for 8 rows and more; what bitsandbytes does not know runs as Ada (sm89)."""
    return _cap_sm90 if capability[0] == 9 else _LARGE_WEIGHT.get(capability, _cap_sm89)


def _cap_sm75(blocks: int, sms: int, n: int, k: int) -> int:
    """T4: slow memory makes dequantizing dear."""
    if blocks >= sms * 3:
        return 128 if k < n else 64
    return 64 if blocks >= sms // 2 else 32


def _cap_sm80(blocks: int, sms: int, n: int, k: int) -> int:
    """A100: where ``k`` is long, splitting it is what the dequantized product does better."""
    if blocks >= sms * 3:
        return 128
    if blocks >= sms:
        return 64 if k < n else 32
    if k >= n * 3 and blocks * 4 > sms:
        return NEVER
    if k == n and blocks >= 48 and blocks * 5 < sms * 3:
        return NEVER
    if blocks * 2 < sms:
        if k <= n:
            return 128
        if blocks * 3 >= sms:
            return NEVER
    return 128 if blocks >= sms // 2 and k < n else 16


def _cap_sm86(blocks: int, sms: int, n: int, k: int) -> int:  # noqa: ARG001 - one signature for all tiers
    """A10, RTX 3090."""
    if blocks >= sms:
        return 128
    return 64 if blocks >= sms // 2 else 16


def _cap_sm89(blocks: int, sms: int, n: int, k: int) -> int:
    """RTX 4090, L40S, L4, and every architecture without tiers of its own."""
    if blocks >= sms * 3:
        return 256
    if blocks >= sms * 2:
        return 128
    if blocks * 5 >= sms * 4:
        return _cap_sm89_nearly_full(blocks, sms, n, k)
    if blocks >= sms // 2:
        if k > n * 2:
            return 64
        return 8 if blocks >= 64 else 32
    if k > n and blocks <= 48:
        return 12 if k >= n * 3 else 10
    return 16 if k > n * 2 or blocks < 48 else 8


def _cap_sm89_nearly_full(blocks: int, sms: int, n: int, k: int) -> int:
    """From four fifths of a wave to two waves."""
    if k > n * 2 or blocks >= 200:
        return 128
    if k < n:
        return 64
    return 128 if sms >= 60 else 32


def _cap_sm90(blocks: int, sms: int, n: int, k: int) -> int:
    """H100, H200: the dequantized product uses Hopper's own instructions, the fused one does not."""
    if blocks >= sms * 3:
        return 64
    if blocks >= sms * 2:
        return 48
    if blocks >= sms:
        return 32
    if blocks < sms // 2 or (k >= n and blocks * 4 < sms * 3):
        return NEVER
    return 16


def _cap_sm100(blocks: int, sms: int, n: int, k: int) -> int:
    """B200, B300: as Hopper, more so; holds for small weights too."""
    if blocks >= sms * 3:
        return 32
    return 8 if blocks >= sms and k < n else NEVER


def _cap_sm120(blocks: int, sms: int, n: int, k: int) -> int:
    """RTX 50 and RTX PRO 6000."""
    if blocks >= sms * 3:
        return 256
    if blocks >= sms * 2:
        return 128
    if blocks * 5 >= sms * 4:
        return 96 if k >= n else 64
    if blocks >= sms // 2:
        return 64 if k * 2 >= n and blocks >= 128 else 8
    return 16 if k > n * 2 and blocks > 64 else 8


def _cap_sm121(blocks: int, sms: int, n: int, k: int) -> int:
    """GB10: the slow memory keeps the fused kernel ahead from one wave up; below that it was not calibrated."""
    return 256 if blocks >= sms else _cap_sm89(blocks, sms, n, k)


_LARGE_WEIGHT: dict[Capability, Cap] = {
    (7, 5): _cap_sm75,
    (8, 0): _cap_sm80,
    (8, 6): _cap_sm86,
    (12, 0): _cap_sm120,
    (12, 1): _cap_sm121,
}
