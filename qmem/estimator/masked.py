"""Indexing by a mask on paper tensors, where every element of the mask is set.

``nonzero``'s own few hundred bytes of scratch are left out.  Sources: torch 2.14.1 ``aten/src/ATen/native/cuda``
(``Nonzero.cu``, ``Indexing.cu`` ``index_put_with_sort_kernel``, ``IndexKernel.cpp``), ``derivatives.yaml``
(``index``, ``masked_scatter``).
"""

from math import prod

from qmem.estimator.cub import exclusive_sum_bytes, sort_pairs_bytes
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.reductions import sum_rows
from qmem.estimator.tape import Gradients, record


def select(x: PaperTensor, mask: PaperTensor) -> PaperTensor:
    """``x[mask]``: the positions as ``nonzero`` lists them, then the rows; saves the mask.

    Backward puts the rows into zeros of ``x``'s shape, by a sort, because positions could repeat.
    """
    paper, x_shape = x.paper, x.shape

    def backward(g: PaperTensor, _: list[bool], mask: PaperTensor) -> Gradients:
        grad = empty(g.paper, x_shape, g.dtype)
        _sort_positions(mask)
        return (grad,)

    node = record(paper, "index", [x], backward, (mask,))
    positions = _nonzero(mask)
    rows = empty(paper, (mask.numel, *x_shape[len(mask.shape) :]), x.dtype, node)
    del positions
    return rows


def _nonzero(mask: PaperTensor) -> PaperTensor:
    return empty(mask.paper, (mask.numel, len(mask.shape)), "int64")


def _sort_positions(mask: PaperTensor) -> None:
    """``index_put_`` with accumulation: one number for each position of a two-dimensional mask, sorted with its row."""
    paper, n = mask.paper, mask.numel
    positions = _nonzero(mask)
    wrapped = empty(paper, (n,), "int64")
    in_rows = empty(paper, (n,), "int64")
    del wrapped
    in_columns = empty(paper, (n,), "int64")
    linear = empty(paper, (n,), "int64")
    del in_rows, in_columns, positions
    sorted_positions = empty(paper, (n,), "int64")
    order = empty(paper, (n,), "int64")
    sorted_order = empty(paper, (n,), "int64")
    scratch = empty(paper, (sort_pairs_bytes(n, (n - 1).bit_length(), paper.gpu.capability),), "uint8")
    del scratch, linear, sorted_positions, order, sorted_order


def scatter(x: PaperTensor, mask: PaperTensor) -> PaperTensor:
    """``x.new_zeros(mask.shape).masked_scatter(mask, x)``: a copy of the zeros, by a running sum of the mask.

    Backward is ``masked_select`` of the gradient.
    """
    paper = x.paper

    def backward(g: PaperTensor, _: list[bool], mask: PaperTensor) -> Gradients:
        positions = _nonzero(mask)
        selected = empty(g.paper, (mask.numel,), g.dtype)
        del positions
        return (selected,)

    zeros = empty(paper, mask.shape, x.dtype)
    node = record(paper, "masked_scatter", [x], backward, (mask,))
    result = empty(paper, mask.shape, x.dtype, node)
    running = empty(paper, mask.shape, "int64")
    scratch = empty(paper, (exclusive_sum_bytes(mask.numel),), "uint8")
    del scratch, running, zeros
    return result


def count(mask: PaperTensor) -> PaperTensor:
    """``mask.sum()``: an int64; the mask is cast to it first."""
    paper = mask.paper
    result = empty(paper, (), "int64")
    cast = empty(paper, mask.shape, "int64")
    sum_rows(paper, 1, mask.numel, "int64")
    del cast
    return result


def total(x: PaperTensor) -> PaperTensor:
    """``x.sum()``: a scalar; backward expands its gradient, which takes no memory."""
    x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (PaperTensor(x_shape, g.dtype, g.storage, base=g),)

    result = empty(x.paper, (), x.dtype, record(x.paper, "sum", [x], backward))
    sum_rows(x.paper, 1, prod(x_shape), x.dtype)
    return result
