"""What torch's reduction kernel allocates besides its result: partial results and semaphores.

Owns one rule of CUDA's ``sum``, ``mean`` and ``norm``: how the inputs of a result are split over lanes, warps and
thread blocks.  Only a split over thread blocks needs memory.  Knows nothing of who reduces, or into what.

Source: torch 2.14.1 ``aten/src/ATen/native/cuda/Reduce.cuh`` (``setReduceConfig``, ``set_block_dimension``,
``get_output_vec_size``, ``ReduceConfig::global_memory_size`` and ``semaphore_size``).  Both buffers are freed when the
kernel is launched.  An input above 2 GiB is reduced in parts there, which is not done here.
"""

from typing import NamedTuple

from qmem.estimator.paper import Gpu, Paper, empty

MAX_THREADS = 512
"""Most threads of a block (``mnt_wrapper``), before a thread takes several results."""

WARP = 32

VECTOR = 4
"""Elements one thread loads at once (``vt0``)."""

VECTORIZED_FROM = 128
"""Inputs of one result from which a thread loads several at once."""

MIN_VALUES, MAX_VALUES = 16, 256
"""Inputs that one thread should sum: fewer are not worth a thread, more are split over blocks."""

FEWER_THREADS = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (11, 0): 1536, (12, 0): 1536, (12, 1): 1536}
"""Threads a multiprocessor holds at most, where these are not 2048 (CUDA C++ programming guide 13.0,
technical specifications by compute capability)."""


class Buffers(NamedTuple):
    """How many partial results and how many semaphores of 4 bytes, in the order in which they are allocated."""

    n_partial: int
    n_semaphores: int


class _Split(NamedTuple):
    """How a reduction is laid out before blocks share it.

    Attributes:
        width, height: threads of a block along the contiguous dimension and across it.
        lanes: partial results that a block makes at once: its width, unless its lanes share a result.
        vector: results a thread makes.
        step: inputs of one result that a block reads at once.
    """

    width: int
    height: int
    lanes: int
    vector: int
    step: int


def sum_columns(paper: Paper, rows: int, columns: int) -> None:
    """What a sum of ``rows x columns`` over rows allocates and frees besides its result, which is there by then.

    Partial sums are fp32 for every 16-bit and 32-bit dtype.
    """
    _pass(paper, column_sum_buffers(rows, columns, paper.gpu))


def sum_rows(paper: Paper, rows: int, columns: int, partial: str = "fp32") -> None:
    """What a sum of each row of ``rows x columns`` allocates and frees besides its result.

    ``partial`` is the dtype of partial results: fp32 for numbers, ``bool`` for ``any``.
    """
    _pass(paper, row_sum_buffers(rows, columns, paper.gpu), partial)


def _pass(paper: Paper, buffers: "Buffers | None", partial: str = "fp32") -> None:
    if buffers is not None:
        staging = empty(paper, (buffers.n_partial,), partial)
        semaphores = empty(paper, (buffers.n_semaphores,), "int32")
        del semaphores, staging


def column_sum_buffers(rows: int, columns: int, gpu: Gpu) -> Buffers | None:
    """The buffers of summing ``rows x columns`` over rows, as the gradient of a norm's weight or of a bias is.

    ``None`` where one block sums each column: with few
    rows, or with more columns than the card needs to be busy.
    """
    vector = VECTOR
    while columns % vector:
        vector //= 2
    width, height = _block(columns // vector, rows, MAX_THREADS // vector)
    return _buffers(_Split(width, height, width, vector, 1), rows, columns, gpu)


def row_sum_buffers(rows: int, columns: int, gpu: Gpu) -> Buffers | None:
    """The buffers of summing each row of ``rows x columns``; one row of everything is a full ``sum``.

    Lanes of a block share a row, so its partial results are as many as its blocks.  ``None`` for rows of fewer
    than 131,072 elements.
    """
    loads = columns // VECTOR if columns >= VECTORIZED_FROM else columns
    width, height = _block(loads, rows, MAX_THREADS)
    return _buffers(_Split(width, height, 1, 1, width), columns, rows, gpu)


def max_threads_per_multiprocessor(capability: tuple[int, int]) -> int:
    """Threads that a multiprocessor of this compute capability holds at most."""
    return FEWER_THREADS.get(capability, 2048)


def _block(along: int, across: int, most: int) -> tuple[int, int]:
    """The block's width and height: powers of two, a warp wide at least if there is enough along the memory."""
    along, across = (most if extent >= most else _power_of_two(extent) for extent in (along, across))
    height = min(across, most // min(along, WARP))
    return min(along, most // height), height


def _power_of_two(n: int) -> int:
    return 1 << max(n.bit_length() - 1, 0)


def _buffers(split: _Split, n_inputs: int, n_outputs: int, gpu: Gpu) -> Buffers | None:
    """Warps share a result if each thread keeps enough inputs; blocks do if each thread has too many left."""
    if -(-n_inputs // split.step) < min(split.height * MIN_VALUES, MAX_VALUES):
        return None
    values = -(-n_inputs // (split.step * split.height))
    grid = -(-(n_outputs // split.vector) // split.lanes)
    busy = gpu.sm_count * (max_threads_per_multiprocessor(gpu.capability) // (split.width * split.height))
    if values < MAX_VALUES or grid > busy:
        return None
    least, most = -(-values // MAX_VALUES), -(-values // MIN_VALUES)
    blocks = min(max(-(-busy // grid), least), most)
    if blocks == 1:
        return None
    return Buffers(n_outputs * blocks * split.lanes * split.vector, grid)
