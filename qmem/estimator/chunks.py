"""Heads of tokens in chunks, on paper tensors: how ``[b, h, s, d]`` lies in memory, and what that costs in copies.

What is ``swapped`` lies token by token (``[b, s, h, d]``), what has ``columns`` lies matrix by matrix with the columns
together; what is cut into chunks and is both has the columns of all its chunks together.  Sources: torch 2.14.1
``aten/src/ATen/native/TensorShape.cpp``, ``LinearAlgebra.cpp`` (``_matmul_impl``), ``cuda/linalg``
(``BatchLinearAlgebra.cpp``), ``torch/csrc/autograd/custom_function.cpp`` and ``functions/tensor.cpp``
(``CopySlices``), ``derivatives.yaml``.
"""

from math import prod

from qmem.estimator.operations import cast_for_matmul, like, use_cublas
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.tape import Gradients, Node, record, save_output

LOOPED_MATRICES = 8
"""Up to so many systems of 64 or more unknowns are solved one by one, without tables of pointers
(``triangular_solve_kernel``)."""


def alias(x: PaperTensor, shape: tuple[int, ...], *, swapped: bool = False, columns: bool = False) -> PaperTensor:
    """A view of the same storage, for a gradient."""
    return PaperTensor(shape, x.dtype, x.storage, base=x, swapped=swapped, columns=columns)


def padded(x: PaperTensor, pad: int) -> PaperTensor:
    """``F.pad`` of the tokens: a copy, which lies as ``x`` does if nothing is added."""
    x_shape = x.shape
    b, h, s, *width = x_shape
    node = record(x.paper, "pad", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    if pad == 0:
        return like(x, node)
    return empty(x.paper, (b, h, s + pad, *width), x.dtype, node)


def chunked(x: PaperTensor, size: int) -> PaperTensor:
    """``x.reshape(b, h, -1, size, d)``: a view; a gradient whose chunks have their columns together is copied."""
    x_shape = x.shape
    b, h, s, *width = x_shape
    n = s // size

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (empty(g.paper, x_shape, g.dtype) if g.columns and n > 1 else alias(g, x_shape, swapped=g.swapped),)

    node = record(x.paper, "view", [x], backward)
    swapped = x.swapped or (x.columns and n > 1)
    shape = (b, h, n, size, *width)
    return PaperTensor(shape, x.dtype, x.storage, node, base=x, swapped=swapped, columns=x.columns)


def joined_chunks(x: PaperTensor) -> PaperTensor:
    """``x.reshape(b, h, -1, d)`` of chunks whose columns lie together: a copy, if there are several."""
    b, h, n, size, d = x_shape = x.shape
    shape = (b, h, n * size, d)
    node = record(x.paper, "reshape", [x], lambda g, _: (alias(g, x_shape, swapped=g.swapped),))
    if n > 1:
        return empty(x.paper, shape, x.dtype, node)
    return PaperTensor(shape, x.dtype, x.storage, node, base=x, columns=x.columns)


def chosen(x: PaperTensor, dimension: int = 2) -> PaperTensor:
    """``x[:, :, i]``, or along another dimension: a view.  Backward puts the gradient into zeros of the full shape."""
    x_shape = x.shape
    shape = (*x_shape[:dimension], *x_shape[dimension + 1 :])
    node = record(x.paper, "select", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    swapped = x.swapped and not x.columns
    return PaperTensor(shape, x.dtype, x.storage, node, base=x, swapped=swapped, columns=x.columns)


def put_chunk(x: PaperTensor, value: PaperTensor) -> PaperTensor:
    """``x[:, :, i] = value``: no memory.

    Backward copies the whole gradient, and its part for ``value`` once more; what was in ``x`` before gets zeros there.
    """
    x_shape, dtype = x.shape, value.dtype

    def backward(g: PaperTensor, needs: list[bool]) -> Gradients:
        grad = empty(g.paper, x_shape, g.dtype, columns=True)
        cloned = empty(g.paper, value_shape, g.dtype)
        zeros = like(cloned) if needs[0] else None
        grad_of_value = cloned if g.dtype == dtype else empty(g.paper, value_shape, dtype)
        del cloned
        del zeros
        return grad if needs[0] else None, grad_of_value

    value_shape = value.shape
    node = record(x.paper, "copy slices", [x, value], backward)
    return PaperTensor(x_shape, x.dtype, x.storage, node, columns=x.columns)


def first_tokens(x: PaperTensor, s: int) -> PaperTensor:
    """``x[:, :, :s]``: a view; all of ``x`` is an alias, whose gradient passes through."""
    x_shape = x.shape
    b, h, total, d = x_shape
    if s == total:
        node = record(x.paper, "alias", [x], lambda g, _: (g,))
    else:
        node = record(x.paper, "slice", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return PaperTensor((b, h, s, d), x.dtype, x.storage, node, base=x, columns=x.columns)


def transposed(x: PaperTensor) -> PaperTensor:
    """``x.transpose(-1, -2)``: a view, forward and backward."""
    *outer, rows, columns = x_shape = x.shape
    node = record(x.paper, "transpose", [x], lambda g, _: (alias(g, x_shape),))
    shape = (*outer, columns, rows)
    return PaperTensor(shape, x.dtype, x.storage, node, base=x, swapped=x.swapped, columns=x.columns)


def products(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``a @ b`` of stacks of matrices.  Both casts live until the product is there."""
    cast_b = cast_for_matmul(b)
    return _matmul(cast_for_matmul(a), cast_b)


def _matmul(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    return _bmm(_folded(a), _folded(b))


def _folded(x: PaperTensor) -> PaperTensor:
    """As one stack: heads that do not merge with what they stand between are copied."""
    if not x.swapped or x.shape[0] * prod(x.shape[2:-2]) == 1:
        return x
    x_shape = x.shape
    return empty(x.paper, x_shape, x.dtype, record(x.paper, "reshape", [x], lambda g, _: (alias(g, x_shape),)))


def _bmm(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``torch.bmm``: each factor is saved only if the other needs a gradient."""
    paper, a_shape, b_shape = a.paper, a.shape, b.shape

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_b = empty(paper, b_shape, g.dtype) if needs[1] else None
        grad_a = empty(paper, a_shape, g.dtype) if needs[0] else None
        use_cublas(paper)
        return tuple(None if grad is None else alias(grad, grad.shape) for grad in (grad_a, grad_b))

    saved = (a if b.requires_grad else None, b if a.requires_grad else None)
    node = record(paper, "bmm", [a, b], backward, saved)
    out = empty(paper, (*a_shape[:-1], b_shape[-1]), a.dtype, node)
    use_cublas(paper)
    return out


def solve_triangular(system: PaperTensor, values: PaperTensor) -> PaperTensor:
    """``torch.linalg.solve_triangular``: saves the system and its result, whose columns lie together.

    Backward solves for the gradient; the system's is the lower part of minus the product of both.
    """
    paper, shape, system_shape = system.paper, values.shape, system.shape

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor) -> Gradients:
        grad_values = _solved(g, shape)
        if not needs[0]:
            return None, grad_values
        product = empty(paper, system_shape, g.dtype)
        negated = like(product)
        del product
        grad_system = like(negated)
        del negated
        return grad_system, grad_values if needs[1] else None

    node = record(paper, "solve_triangular", [system, values], backward, (system,))
    result = _solved(values, shape, node)
    save_output(node, result)
    if node is not None:
        # The system goes first, where a list would begin with its last.
        node.saved.reverse()
    return result


def _solved(values: PaperTensor, shape: tuple[int, ...], node: Node | None = None) -> PaperTensor:
    """The result, and two tables of pointers to the matrices, if they are many."""
    paper, n_matrices = values.paper, prod(shape[:-2])
    result = empty(paper, shape, values.dtype, node, columns=True)
    if n_matrices > LOOPED_MATRICES:
        systems = empty(paper, (n_matrices,), "int64")
        right_sides = empty(paper, (n_matrices,), "int64")
        del right_sides, systems
    return result
