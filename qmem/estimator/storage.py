"""What the libraries keep of a weight and of an optimizer, tensor by tensor.

Owns the shapes, dtypes and places of stored tensors: bitsandbytes' quantized weights, and the state that torch,
transformers and bitsandbytes optimizers hold for a parameter.  Sizes are requested bytes; the allocator's 512-byte
grain, the transients of quantizing, and the step that uses the state belong to others.

Sources: bitsandbytes 0.50.2 (``functional.py``, ``nn/modules.py``, ``backends/cuda/ops.py``, ``optim/optimizer.py``),
torch 2.14.1 (``optim/adam.py``, ``optim/sgd.py``), transformers 5.23.0 (``optimization.py``, ``trainer.py``,
``trainer_optimizer.py``).
"""

from math import prod
from typing import Literal, NamedTuple

from qmem.estimator.paper import DTYPE_BYTES
from qmem.job.job import Optimizer, StorageDtype
from qmem.ledger import Space

Quant4bit = Literal["nf4", "fp4"]

NESTED_BLOCK = 256
"""Block size of the second quantization (``functional.quantize_4bit`` fixes it)."""

STATE_BLOCK = 256
"""Elements that share one absmax in an 8-bit optimizer's state (``Optimizer2State.init_state``)."""

MIN_8BIT_ELEMENTS = 4096
"""Parameters with fewer elements keep fp32 state under an 8-bit optimizer (``min_8bit_size``)."""

MIN_PAGED_ELEMENTS = 100_000
"""Parameters with fewer elements keep their state on the GPU under a paged optimizer (``get_state_buffer``)."""


class Piece(NamedTuple):
    """One tensor that stays.

    Attributes:
        name: as the library names it.
        shape, dtype: of the tensor.
        space: where it lies; ``managed`` is CUDA managed memory, which torch's allocator does not count.
        because: the formula of its size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    space: Space = "gpu"
    because: str = ""

    @property
    def n_bytes(self) -> int:
        """Requested bytes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def quantized_weight(
    shape: tuple[int, ...],
    quant: Quant4bit,
    *,
    double_quant: bool,
    block_size: int = 64,
    quant_storage: StorageDtype = "uint8",
) -> tuple[Piece, ...]:
    """What ``Params4bit`` holds for a weight, in the order in which CUDA allocates it; nf4 and fp4 take the same.

    * ``absmax``: one fp32 for each started block of ``block_size`` elements.
    * ``weight``: two elements a byte, shaped ``(rows, 1)`` in the storage dtype.
      ``rows = (elements + 1) // (2 x bytes of the dtype)``, rounded **down**: where the packed bytes are no multiple
      of the storage dtype's, the CUDA tensor is shorter than the data, and the CPU backend refuses.
    * ``quant_map``: the 16 values of the 4-bit code, fp32, a copy for every weight.

    With double quantization the fp32 absmax is temporary.  Its mean is kept (``offset``), and what is left of it is
    quantized in blocks of 256: ``absmax`` becomes one byte a block, ``nested_absmax`` one fp32 for each started 256
    blocks, ``nested_quant_map`` 256 fp32, again a copy for every weight.

    Source: ``functional.quantize_4bit``, ``quantize_blockwise``, ``get_4bit_type``; ``backends/cuda/ops.py``.
    Checked against the CPU backend, and for the rounding against the library's own shape function.
    """
    elements = prod(shape)
    blocks = -(-elements // block_size)
    rows = (elements + 1) // (2 * DTYPE_BYTES[quant_storage])
    weight = Piece("weight", (rows, 1), quant_storage, because=f"{elements} elements x 4 bit")
    quant_map = Piece("quant_map", (16,), "fp32", because=f"16 {quant} values x 4 B")
    per_block = f"{blocks} blocks of {block_size}"
    if not double_quant:
        return Piece("absmax", (blocks,), "fp32", because=f"{per_block} x 4 B"), weight, quant_map
    return (
        weight,
        quant_map,
        Piece("offset", (), "fp32", because="mean of absmax, 4 B"),
        Piece("nested_absmax", (-(-blocks // NESTED_BLOCK),), "fp32", because=f"{per_block} / {NESTED_BLOCK} x 4 B"),
        Piece("absmax", (blocks,), "uint8", because=f"{per_block} x 1 B"),
        Piece("nested_quant_map", (256,), "fp32", because="256 code values x 4 B"),
    )


def quantization_shared(*, double_quant: bool) -> tuple[Piece, ...]:
    """What the process keeps once for all 4-bit weights: the 8-bit code that double quantization caches.

    Source: ``functional.quantize_blockwise``, the module's ``name2qmap``; made with the first weight, after its
    ``offset``.  Weights that were stored quantized (a ``-bnb-4bit`` checkpoint) do not make it.
    """
    return (Piece("dynamic", (256,), "fp32", because="256 code values x 4 B"),) if double_quant else ()


def int8_weight(shape: tuple[int, int]) -> tuple[Piece, ...]:
    """What ``Linear8bitLt`` holds for a weight: one fp32 scale a row and one byte an element.

    Source: ``nn/modules.py``, ``Int8Params._quantize``; ``int8_vectorwise_quant`` in ``backends/cuda/ops.py`` for the
    order.  The parameter's own data *is* ``CB``.
    """
    return (
        Piece("SCB", (shape[0],), "fp32", because=f"{shape[0]} rows x 4 B"),
        Piece("CB", shape, "int8", because=f"{prod(shape)} elements x 1 B"),
    )


def bits_per_parameter(*, double_quant: bool, block_size: int = 64) -> float:
    """Stored bits for each quantized parameter of a large weight, its tables left out.

    ``4 + 32 / block_size`` = 4.5 without double quantization, and with it
    ``4 + 8 / block_size + 32 / (block_size x 256)`` = 4.127, at a block size of 64.
    """
    if double_quant:
        return 4 + 8 / block_size + 32 / (block_size * NESTED_BLOCK)
    return 4 + 32 / block_size


def optimizer_state(
    optimizer: Optimizer,
    shape: tuple[int, ...],
    dtype: str,
    *,
    keeps_32bit: bool = False,
    state_block: int | None = None,
) -> tuple[Piece, ...]:
    """What an optimizer holds for one parameter after its first step, in the order in which it is allocated.

    Args:
        optimizer: its name.
        shape: of the parameter.
        dtype: of the parameter.
        keeps_32bit: the parameter is exempt from 8-bit state.  transformers' Trainer exempts the weight of every
            ``nn.Embedding`` (``trainer.py``, ``create_optimizer``); a bare loop exempts nothing.
        state_block: elements that share one absmax of an 8-bit state, where not ``STATE_BLOCK``.
    """
    match optimizer:
        case "adamw_torch" | "adamw_torch_fused":
            return _adamw_torch(shape, dtype, fused=optimizer == "adamw_torch_fused")
        case "adafactor":
            return _adafactor(shape)
        case "sgd":
            return ()
    return _bitsandbytes(optimizer, shape, state_block or STATE_BLOCK, keeps_32bit=keeps_32bit)


def optimizer_shared(optimizer: Optimizer) -> tuple[Piece, ...]:
    """What a bitsandbytes 8-bit optimizer keeps once for all its parameters: the code tables of its states.

    They reach the GPU with the first parameter that has 8-bit state, before its ``state1``; an optimizer all of whose
    parameters are below 4,096 elements leaves them on the host.  Lion moves the signed one only.

    Source: ``optim/optimizer.py``, ``fill_qmap`` and ``init_state``.
    """
    if not optimizer.endswith("8bit"):
        return ()
    return tuple(Piece(f"qmap{i}", (256,), "fp32", because="256 code values x 4 B") for i in _states(optimizer))


def _adamw_torch(shape: tuple[int, ...], dtype: str, *, fused: bool) -> tuple[Piece, ...]:
    """Two moments in the parameter's dtype; ``step`` is an fp32 scalar, on the host unless the optimizer is fused.

    Source: torch ``optim/adam.py``, ``_init_group``, which ``AdamW`` inherits.  ``amsgrad`` and ``capturable`` are off,
    as transformers leaves them.
    """
    per_element = f"{prod(shape)} elements x {DTYPE_BYTES[dtype]} B"
    return (
        Piece("step", (), "fp32", "gpu" if fused else "host", "scalar, 4 B"),
        Piece("exp_avg", shape, dtype, because=per_element),
        Piece("exp_avg_sq", shape, dtype, because=per_element),
    )


def _adafactor(shape: tuple[int, ...]) -> tuple[Piece, ...]:
    """Second moments only: of rows and columns from two dimensions up, of elements below; fp32 for every parameter.

    ``RMS`` starts as a number and becomes a scalar tensor on the GPU at each step.

    Source: transformers ``optimization.py``, ``Adafactor.step``, the class that its Trainer builds for
    ``optim="adafactor"`` (``trainer_optimizer.py``: no first moment, ``scale_parameter`` and ``relative_step`` off).
    """
    rms = Piece("RMS", (), "fp32", because="scalar, 4 B")
    if len(shape) < 2:
        return Piece("exp_avg_sq", shape, "fp32", because=f"{prod(shape)} elements x 4 B"), rms
    rows, columns = shape[:-1], shape[:-2] + shape[-1:]
    return (
        Piece("exp_avg_sq_row", rows, "fp32", because=f"{prod(rows)} rows x 4 B"),
        Piece("exp_avg_sq_col", columns, "fp32", because=f"{prod(columns)} columns x 4 B"),
        rms,
    )


def _bitsandbytes(
    optimizer: Optimizer, shape: tuple[int, ...], state_block: int, *, keeps_32bit: bool
) -> tuple[Piece, ...]:
    """State of AdamW (two tensors) or Lion (one), fp32 whatever the parameter's dtype, or 8-bit with block statistics.

    The rules count elements, not bytes: 8-bit from 4,096 up, paged from 100,000 up (the same for both widths).  The
    block statistics are never paged.  Step counts are Python numbers.

    Source: ``optim/optimizer.py``, ``init_state`` and ``get_state_buffer``.  Checked on a simulated device
    (``tests/estimator/golden/optimizer_state.json``).
    """
    elements = prod(shape)
    in_8bit = optimizer.endswith("8bit") and elements >= MIN_8BIT_ELEMENTS and not keeps_32bit
    space: Space = "managed" if optimizer.startswith("paged") and elements >= MIN_PAGED_ELEMENTS else "gpu"
    dtype: str = "uint8" if in_8bit else "fp32"
    per_element = f"{elements} elements x {DTYPE_BYTES[dtype]} B"
    states = tuple(Piece(f"state{i}", shape, dtype, space, per_element) for i in _states(optimizer))
    if not in_8bit:
        return states
    blocks = -(-elements // state_block)
    because = f"{blocks} blocks of {state_block} x 4 B"
    return states + tuple(Piece(f"absmax{i}", (blocks,), "fp32", because=because) for i in _states(optimizer))


def _states(optimizer: Optimizer) -> tuple[int, ...]:
    return (1,) if "lion" in optimizer else (1, 2)
