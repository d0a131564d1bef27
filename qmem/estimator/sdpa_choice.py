"""Which kernel ``F.scaled_dot_product_attention`` runs, and the buffers whose size depends on the card.

Owns torch's choice among its attention kernels and two transient sizes that hang on the kernel's tiling.  It knows
numbers only; what each kernel allocates and saves stands in ``attention.py``.

Source: torch 2.14.1, ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`` (the choice), the flash kernel's
``flash_api.cpp`` (splits), ``attention_backward.cu`` and ``mem_eff_attention/kernel_backward.h`` (workspace).

Checked against torch 2.14.1+cu130 with cuDNN 9.24 on simulated devices, 16 capabilities from 7.0 to 13.0, where
only the sizes and names of allocations and kernels can be seen (``tests/estimator/golden/sdpa_choice.json``).  Not
observed: the workspace that cuDNN's own engine asks for on a real card; builds for CUDA 12, which leave out cuDNN on
some capabilities; ROCm.
"""

from typing import Literal, NamedTuple

from qmem.errors import UnsupportedError
from qmem.estimator.kernel_choice import Capability

SdpaBackend = Literal["flash", "cudnn", "efficient", "math"]

NEWEST: Capability = (12, 1)
"""The newest capability that any fused kernel accepts."""

FLASH_HEAD_DIM = 256
"""Largest head size of the flash kernel."""

STATISTIC_BYTES = 4


def sdpa_backend(
    gpu_capability: Capability,
    dtype: str,
    head_dim: int,
    *,
    has_mask: bool = False,
    needs_grad: bool = True,
    dropout: float = 0.0,
    seq: int = 2048,
    value_dim: int | None = None,
    cudnn_first: bool = True,
) -> SdpaBackend:
    """The kernel that torch takes by default for queries and keys of one length and one head size.

    Args:
        gpu_capability: compute capability of the card.
        dtype: of queries, keys and values, after autocast.
        head_dim: their last dimension.
        value_dim: that of the values where it is another; no flash kernel takes those.
        has_mask: whether an ``attn_mask`` is given; ``is_causal`` is no mask.
        needs_grad: whether a gradient is asked for *and* grad mode is on: the first forward of reentrant
            checkpointing runs without.
        dropout: probability.
        seq: length of the keys.
        cudnn_first: whether cuDNN is asked first where newer torch does.

    Grouped heads (``enable_gqa``) do not change the choice.

    Raises:
        UnsupportedError: values of another width on a card where torch prefers cuDNN, whose plan is not known.
    """
    if value_dim not in (None, head_dim):
        return _backend_of_narrow_values(gpu_capability, dtype, head_dim)
    if (
        cudnn_first
        and _prefers_cudnn(gpu_capability)
        and _cudnn_can(gpu_capability, dtype, head_dim, needs_grad=needs_grad, dropout=dropout, seq=seq)
    ):
        return "cudnn"
    if not has_mask and _flash_can(gpu_capability, dtype, head_dim, needs_grad, dropout):
        return "flash"
    return "efficient" if _efficient_can(gpu_capability, dtype, head_dim) else "math"


def _backend_of_narrow_values(capability: Capability, dtype: str, head_dim: int) -> SdpaBackend:
    if _prefers_cudnn(capability) and dtype != "fp32":
        major, minor = capability
        raise UnsupportedError(
            f"attention whose values are narrower than its keys is not modelled on compute capability {major}.{minor},"
            " where cuDNN runs it",
            hint="name another card with --gpu, or use --attention eager",
        )
    return "efficient" if _efficient_can(capability, dtype, head_dim) else "math"


def _prefers_cudnn(capability: Capability) -> bool:
    """Hopper and B200/B300 ask cuDNN first; elsewhere it stands behind the math kernel and is never reached."""
    return capability[0] in (9, 10)


def _cudnn_can(
    capability: Capability, dtype: str, head_dim: int, *, needs_grad: bool, dropout: float, seq: int
) -> bool:
    """16-bit inputs, with or without a mask; head sizes in eights up to 128, on newer cards up to 256.

    Backward knows head sizes up to 128 and 256 itself, nothing between (``check_cudnn_d256_bprop_head_dim``).
    Dropout must be a multiple of 1/16, and a single key is refused.
    """
    if dtype == "fp32" or head_dim % 8 or (dropout * 16) % 1 or seq == 1:
        return False
    if head_dim <= 128:
        return True
    if (capability[0] != 10 and capability != (9, 0)) or capability == (10, 7):
        return False
    return head_dim == 256 or (head_dim < 256 and not needs_grad)


def _flash_can(capability: Capability, dtype: str, head_dim: int, needs_grad: bool, dropout: float) -> bool:
    """16-bit inputs from Ampere on, head sizes up to 256 (others than eights are padded).

    Cards with little shared memory (sm86 to sm89, sm120, sm121) do not train head sizes of 193 to 224, and above
    only without dropout.
    """
    if dtype == "fp32" or head_dim > FLASH_HEAD_DIM or not (8, 0) <= capability <= NEWEST:
        return False
    if not needs_grad or not ((8, 6) <= capability <= (8, 9) or capability >= (12, 0)):
        return True
    return head_dim <= 192 or (head_dim > 224 and not dropout)


def _efficient_can(capability: Capability, dtype: str, head_dim: int) -> bool:
    """Any head size that the tensor cores' alignment divides: 8 for 16-bit, 4 for fp32 (any below Ampere)."""
    if not (5, 0) <= capability <= NEWEST or (dtype == "bf16" and capability < (8, 0)):
        return False
    if dtype == "fp32":
        return head_dim % 4 == 0 or capability < (8, 0)
    return head_dim % 8 == 0 or capability < (7, 0)


def flash_split_bytes(sm_count: int, batch: int, heads: int, seq: int, head_dim: int) -> tuple[int, int] | None:
    """The two fp32 buffers of a split flash forward: partial log-sum-exps, partial outputs; ``None`` if unsplit.

    When the row blocks of all heads leave over a fifth of the card idle, keys are split over more blocks, each with
    an output of its own: several times the output, between its birth and the return.  Only without dropout.

    Source: ``flash_api.cpp``, ``set_params_splitkv``.  Checked on 2,520 shapes on each of A100, L4 and H100, simulated.
    """
    splits = _flash_splits(2 * sm_count, batch * heads * _blocks(seq, 64), _blocks(seq, _flash_key_block(head_dim)))
    if splits == 1:
        return None
    rows = splits * batch * heads * seq * STATISTIC_BYTES
    return rows, rows * flash_padded_head_dim(head_dim)


def flash_padded_head_dim(head_dim: int) -> int:
    """Head size of the flash kernel's fp32 accumulators: multiples of 32 up to 128, of 64 above."""
    step = 32 if head_dim <= 128 else 64
    return _blocks(head_dim, step) * step


def _flash_key_block(head_dim: int) -> int:
    if head_dim <= 64:
        return 256
    return 128 if head_dim <= 128 else 64


def _flash_splits(slots: int, row_blocks: int, key_blocks: int) -> int:
    """The fewest splits whose waves are at least 85 % as full as the fullest (``num_splits_heuristic``)."""
    if row_blocks >= 0.8 * slots:
        return 1
    limit = min(128, slots, key_blocks)
    fullness = {
        splits: (waves := row_blocks * splits / slots) / -(-waves // 1)
        for splits in range(1, limit + 1)
        if splits == 1 or _blocks(key_blocks, splits) != _blocks(key_blocks, splits - 1)
    }
    enough = 0.85 * max(fullness.values())
    return next(splits for splits, full in fullness.items() if full >= enough)


class Tiling(NamedTuple):
    """How the memory-efficient backward is cut.

    Attributes:
        rows, columns: of the tiles in which it adds up the queries' gradient.
        stages_keys: whether the gradients of keys and values are added up in the workspace too.
    """

    rows: int
    columns: int
    stages_keys: bool


KEY_BLOCK = 64
"""Keys of a block in every tiling that stages them."""


def efficient_backward_workspace_bytes(
    gpu_capability: Capability,
    dtype: str,
    batch: int,
    heads: int,
    seq: int,
    head_dim: int,
    value_dim: int | None = None,
) -> int:
    """The fp32 workspace of the memory-efficient backward, all heads together.

    A head takes one tile for each ``rows x columns`` of the queries' gradient, with a 16-byte lock; where a 16-bit
    head does not fit the registers also both key-side gradients, once for each split of the keys.

    Source: ``kernel_backward.h``, ``workspace_size``; ``attention_backward.cu`` for the splits.
    """
    tiling = _efficient_tiling(gpu_capability, dtype, head_dim)
    tiles = _blocks(seq, tiling.rows) * _blocks(head_dim, tiling.columns)
    per_head = tiles * (tiling.rows * tiling.columns * 4 + 16)
    if tiling.stages_keys:
        splits = min(_blocks(seq, KEY_BLOCK), max(1, 200 // (batch * heads)))
        columns = _blocks(head_dim, tiling.rows) + _blocks(value_dim or head_dim, tiling.rows)
        per_head += splits * KEY_BLOCK * columns * tiling.rows * 4
    return batch * heads * per_head


def _efficient_tiling(capability: Capability, dtype: str, head_dim: int) -> Tiling:
    """The first kernel that fits: by head size, dtype and the card's shared memory (large: A100, Orin, 9 to 11)."""
    if head_dim <= 64:
        return Tiling(64, 64, stages_keys=False)
    large = capability in ((8, 0), (8, 7)) or 9 <= capability[0] <= 11
    if dtype == "fp32":
        return Tiling(128 if large else 64, 64, stages_keys=False)
    if head_dim > 128:
        return Tiling(128, 64, stages_keys=True)
    if large:
        return Tiling(128, 128, stages_keys=False)
    if capability[0] == 7 or (capability[0] == 8 and head_dim <= 96):
        return Tiling(128, 64, stages_keys=False)
    return Tiling(64, 64, stages_keys=True)


def _blocks(length: int, size: int) -> int:
    return -(-length // size)
