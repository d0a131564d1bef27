"""Slices and joins along the last dimension, on paper tensors.

Sources: torch 2.14.1 ``derivatives.yaml`` (``slice``, ``split``, ``cat``), ``aten/src/ATen/TensorIndexing.h``.
"""

from collections.abc import Sequence

from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.tape import Gradients, record, slots


def half(x: PaperTensor) -> PaperTensor:
    """``x[..., : n // 2]``."""
    return part(x, x.shape[-1] // 2)


def part(x: PaperTensor, width: int) -> PaperTensor:
    """``x[..., :width]`` or another part of that width: a view.  ``slice_backward`` makes zeros of the full shape.

    All of ``x`` is an alias, whose gradient passes through (``TensorIndexing.h``, ``applySlice``).
    """
    x_shape = x.shape
    if width == x_shape[-1]:
        node = record(x.paper, "alias", [x], lambda g, _: (g,))
    else:
        node = record(x.paper, "slice", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return PaperTensor((*x_shape[:-1], width), x.dtype, x.storage, node, base=x, swapped=x.swapped)


def heads(x: PaperTensor, n: int) -> PaperTensor:
    """``x[..., :n, :]`` or another part of so many heads: a view, as ``part`` is along the last dimension."""
    return _slice(x, (*x.shape[:-2], n, x.shape[-1]))


def one_head(x: PaperTensor) -> PaperTensor:
    """``x[..., i, :]``: a view without that dimension."""
    return _slice(x, (*x.shape[:-2], x.shape[-1]))


def taken_whole(x: PaperTensor, n_dimensions: int) -> PaperTensor:
    """``x[:, :]`` over that many dimensions: ``x`` itself, but in older libraries slices like any other."""
    for _ in range(n_dimensions if x.paper.older.slices_whole else 0):
        x = _slice(x, x.shape)
    return x


def _slice(x: PaperTensor, shape: tuple[int, ...]) -> PaperTensor:
    x_shape = x.shape
    node = record(x.paper, "slice", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return PaperTensor(shape, x.dtype, x.storage, node, base=x, swapped=x.swapped)


def picked_head(x: PaperTensor) -> PaperTensor:
    """``x[..., [i], :]``: a copy; saves the index.  Backward puts the gradient into zeros by a sort of one number."""
    paper, x_shape = x.paper, x.shape

    def backward(g: PaperTensor, _: list[bool], _index: PaperTensor) -> Gradients:
        grad = empty(paper, x_shape, g.dtype)
        linear = empty(paper, (1,), "int64")
        wrapped = empty(paper, (1,), "int64")
        del wrapped
        order = [empty(paper, (1,), "int64") for _ in range(3)]
        scratch = empty(paper, (1,), "uint8")
        del scratch, order, linear
        return (grad,)

    paper.rule = "index"
    index = empty(paper, (1,), "int64")
    node = record(paper, "index", [x], backward, (index,))
    return empty(paper, (*x_shape[:-2], 1, x_shape[-1]), x.dtype, node)


def broadcast_heads(x: PaperTensor, n: int) -> PaperTensor:
    """``broadcast_to(x, [b, s, groups, n, d]).flatten(2, 3)``: a copy; backward of the expansion is a sum."""
    b, s, groups, _, d = x_shape = x.shape
    wide = (b, s, groups, n, d)

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        if wide == x_shape:
            return (PaperTensor(wide, g.dtype, g.storage, base=g, swapped=g.swapped),)
        return (empty(g.paper, x_shape, g.dtype),)

    return empty(x.paper, (b, s, groups * n, d), x.dtype, record(x.paper, "broadcast", [x], backward))


def split(x: PaperTensor, widths: Sequence[int]) -> list[PaperTensor]:
    """``x.split(widths, -1)`` or ``x.chunk``: views.

    Backward joins their gradients (``cat``); zeros stand for one that never came.
    """
    paper, x_shape = x.paper, x.shape
    shapes = [(*x_shape[:-1], width) for width in widths]

    def backward(grads: dict[int, PaperTensor], _: list[bool]) -> Gradients:
        dtype = next(iter(grads.values())).dtype
        zeros = [empty(paper, shape, dtype) for index, shape in enumerate(shapes) if index not in grads]
        joined = empty(paper, x_shape, dtype)
        del zeros
        return (joined,)

    nodes = slots(record(paper, "split", [x], backward), len(widths))
    return [
        PaperTensor(shape, x.dtype, x.storage, node, base=x, swapped=x.swapped)
        for shape, node in zip(shapes, nodes, strict=True)
    ]


def cached(x: PaperTensor) -> PaperTensor:
    """What ``DynamicCache.update`` hands back of its first keys or values: joined to nothing, a copy."""
    node = record(
        x.paper, "cat", [x], lambda g, _: (PaperTensor(g.shape, g.dtype, g.storage, base=g, swapped=g.swapped),)
    )
    return empty(x.paper, x.shape, x.dtype, node)


def cat_last(*parts: PaperTensor) -> PaperTensor:
    """``torch.cat(parts, -1)``: the result; backward hands out views."""
    shapes = [part.shape for part in parts]

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return tuple(PaperTensor(shape, g.dtype, g.storage, base=g, swapped=g.swapped) for shape in shapes)

    paper, dtype = parts[0].paper, parts[0].dtype
    node = record(paper, "cat", parts, backward)
    return empty(paper, (*shapes[0][:-1], sum(shape[-1] for shape in shapes)), dtype, node)
