"""Indices of experts on paper tensors: the best few of a row, sorting, taking rows, putting them back.

Every size follows from how many tokens there are and how many experts each takes, none from which ones: the walk is
the same for every routing.  Sources: torch 2.14.1 ``derivatives.yaml`` (``topk``, ``index``, ``div``, ``sum``),
``aten/src/ATen/native/cuda/Sort.cpp``, ``Sort.cu``, ``Indexing.cu`` (``index_put_with_sort_kernel``).
"""

from qmem.estimator.cub import few_counts_sum_bytes, sort_pairs_bytes
from qmem.estimator.operations import clone, like
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.tape import Gradients, record, save_output

SORTED_IN_PLACE = 4096
"""Elements up to which ``torch.sort`` sorts in its results (``should_use_small_sort``)."""

INT64_BITS = 64


def topk(x: PaperTensor, k: int) -> tuple[PaperTensor, PaperTensor]:
    """``torch.topk(x, k)``: values and their places, which are saved; backward scatters into zeros of ``x``'s shape."""
    x_shape, shape = x.shape, (*x.shape[:-1], k)
    node = record(x.paper, "topk", [x], lambda g, _, _places: (empty(g.paper, x_shape, g.dtype),))
    values = empty(x.paper, shape, x.dtype, node)
    places = empty(x.paper, shape, "int64")
    save_output(node, places)
    return values, places


def sum_last(x: PaperTensor) -> PaperTensor:
    """``x.sum(-1, keepdim=True)``: one element a row, in fp32 under autocast.

    Backward expands its gradient, which takes no memory.
    """
    x_shape = x.shape
    dtype = x.dtype if x.paper.autocast_dtype is None else "fp32"

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (PaperTensor(x_shape, g.dtype, g.storage, base=g),)

    return empty(x.paper, (*x_shape[:-1], 1), dtype, record(x.paper, "sum", [x], backward))


def divide_in_place(x: PaperTensor, divisor: PaperTensor) -> PaperTensor:
    """``x /= divisor``: saves the divisor and, where that needs a gradient, a copy of what ``x`` was.

    The divisor's gradient is ``-grad * ((x / divisor) / divisor)``: three temporaries at the size of ``x``.  Quotients
    have the divisor's dtype.
    """
    dtype = divisor.dtype

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_divisor = _gradient_of_divisor(g, dtype) if needs[1] else None
        return like(g, dtype=dtype), grad_divisor

    original = clone(x.detached()) if x.paper.grad_enabled and divisor.requires_grad else None
    node = record(x.paper, "div_", [x, divisor], backward, (original, divisor))
    return PaperTensor(x.shape, x.dtype, x.storage, node, base=x)


def _gradient_of_divisor(g: PaperTensor, dtype: str) -> PaperTensor:
    once, twice = like(g, dtype=dtype), like(g, dtype=dtype)
    negative = like(g)
    grad = like(g, dtype=dtype)
    del negative, once, twice
    return grad


def gather(x: PaperTensor, places: PaperTensor) -> PaperTensor:
    """``x.gather(1, places)``: saves the places; backward scatters into zeros of the shape of ``x``."""
    x_shape = x.shape
    node = record(x.paper, "gather", [x], lambda g, _, _places: (empty(g.paper, x_shape, g.dtype),), (places,))
    return empty(x.paper, places.shape, x.dtype, node)


def masked_fill(x: PaperTensor, mask: PaperTensor) -> PaperTensor:
    """``x.masked_fill(mask, value)``: saves the mask; backward makes one of the size of ``x``."""
    return like(x, record(x.paper, "masked_fill", [x], lambda g, _, _mask: (like(g),), (mask,)))


def sort(ids: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
    """``torch.sort`` of one dimension of int64: the sorted numbers and where each stood.

    Many are sorted by a radix sort, with temporary storage; few in place.  Both need the range of all places.
    """
    paper, n = ids.paper, ids.numel
    paper.rule = "sort"
    in_order = empty(paper, (n,), "int64")
    places = empty(paper, (n,), "int64")
    every_place = empty(paper, (n,), "int64")
    if n > SORTED_IN_PLACE:
        scratch = empty(paper, (sort_pairs_bytes(n, INT64_BITS, paper.gpu.capability),), "uint8")
        del scratch
    del every_place
    return in_order, places


def take(x: PaperTensor, index: PaperTensor) -> PaperTensor:
    """``x[index]`` along the first dimension: the rows; saves the index.

    Backward adds rows into zeros of ``x``'s shape: the places are wrapped, turned into offsets and sorted.
    """
    paper, x_shape = x.paper, x.shape

    def backward(g: PaperTensor, _: list[bool], index: PaperTensor) -> Gradients:
        grad = empty(g.paper, x_shape, g.dtype)
        _sort_places(index, x_shape[0])
        return (grad,)

    node = record(paper, "index", [x], backward, (index,))
    return empty(paper, (index.numel, *x_shape[1:]), x.dtype, node)


def _sort_places(index: PaperTensor, rows: int) -> None:
    """``index_put_`` with accumulation, by a sort over as many bits as the last row's number has."""
    paper, n = index.paper, index.numel
    wrapped = empty(paper, (n,), "int64")
    offsets = empty(paper, (n,), "int64")
    del wrapped
    in_order = empty(paper, (n,), "int64")
    places = empty(paper, (n,), "int64")
    every_place = empty(paper, (n,), "int64")
    n_bits = max((rows - 1).bit_length(), 1)
    scratch = empty(paper, (sort_pairs_bytes(n, n_bits, paper.gpu.capability),), "uint8")
    del scratch, every_place, places, in_order, offsets


def inverse(places: PaperTensor) -> PaperTensor:
    """``inverse[places] = arange(n)``: where each element of a sorted sequence goes back to."""
    paper = places.paper
    paper.rule = "inverse of the sort"
    back = empty(paper, places.shape, "int64")
    counting = empty(paper, places.shape, "int64")
    del counting
    return back


def numbers(of: PaperTensor, what: str, dtype: str = "int64") -> PaperTensor:
    """An integer for each of ``of``: a quotient, a cast."""
    of.paper.rule = what
    return empty(of.paper, of.shape, dtype)


def running_sum(counts: PaperTensor) -> PaperTensor:
    """``torch.cumsum(counts, 0)`` in int32."""
    paper = counts.paper
    paper.rule = "cumsum"
    ends = empty(paper, counts.shape, "int32")
    scratch = empty(paper, (few_counts_sum_bytes(),), "uint8")
    del scratch
    return ends


def sum_of_choices(x: PaperTensor, n_tokens: int) -> PaperTensor:
    """``x.view(tokens, k, width).sum(1)``: a row for each token, in fp32 under autocast.

    Backward writes the expanded gradient out, in the dtype of ``x``.
    """
    x_shape, x_dtype = x.shape, x.dtype
    node = record(x.paper, "sum", [x], lambda g, _: (empty(g.paper, x_shape, x_dtype),))
    dtype = x_dtype if x.paper.autocast_dtype is None else "fp32"
    return empty(x.paper, (n_tokens, x_shape[1]), dtype, node)
