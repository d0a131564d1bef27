"""Operations of torch on paper tensors: what each allocates, saves for backward, and frees.

Every function here is one operator of ``torch`` 2.14.1 as PyTorch's eager mode runs it.  Sources:
``tools/autograd/derivatives.yaml`` (what is saved), ``torch/csrc/autograd/FunctionsManual.cpp`` (what backward
computes), ``aten/src/ATen/autocast_mode.cpp`` (which operators cast).  Checked event by event against recorded
steps (``tests/estimator/golden``).  Attention stands in ``attention.py``.
"""

from math import prod

from qmem.estimator.kernel_choice import cublas_workspace_bytes
from qmem.estimator.paper import DTYPE_BYTES, Paper, PaperTensor, Role, Storage, empty
from qmem.estimator.tape import Gradients, Node, record, save_output
from qmem.ledger import Kind

Shape = tuple[int, ...]

LT_WORKSPACE_BYTES = 1 << 20
"""Of torch 2.4.1 on every card (``CUDABlas.cpp``, ``_parseChosenWorkspaceSize``)."""


def like(x: PaperTensor, node: Node | None = None, dtype: str | None = None, shape: Shape | None = None) -> PaperTensor:
    """A new tensor with the memory layout of ``x``."""
    return empty(x.paper, shape or x.shape, dtype or x.dtype, node, swapped=x.swapped, columns=x.columns)


def _gradient(g: PaperTensor, shape: Shape | None = None) -> PaperTensor:
    return empty(g.paper, shape or g.shape, g.dtype, swapped=g.swapped)


def _view_of(g: PaperTensor, shape: Shape, *, swapped: bool) -> PaperTensor:
    return PaperTensor(shape, g.dtype, g.storage, base=g, swapped=swapped)


def _flat(g: PaperTensor, shape: Shape) -> PaperTensor:
    """``g.reshape(shape)`` of fewer or more dimensions: a copy where some are swapped."""
    return empty(g.paper, shape, g.dtype) if g.swapped else _view_of(g, shape, swapped=False)


def _promoted(a: PaperTensor, b: PaperTensor) -> str:
    return a.dtype if DTYPE_BYTES[a.dtype] >= DTYPE_BYTES[b.dtype] else b.dtype


# ---------------------------------------------------------------------------------------------------- views


def view(x: PaperTensor, shape: Shape) -> PaperTensor:
    """``x.view(shape)``: no memory.  Backward is a view too, but copies a gradient whose dimensions are swapped."""
    x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        if g.columns:
            return (_view_of(g, x_shape, swapped=True),)
        return (_flat(g, x_shape) if len(shape) != len(x_shape) else _view_of(g, x_shape, swapped=g.swapped),)

    node = record(x.paper, "view", [x], backward)
    return PaperTensor(shape, x.dtype, x.storage, node, base=x, swapped=x.swapped)


def swap_heads(x: PaperTensor) -> PaperTensor:
    """``x.transpose(1, 2)``: no memory, forward and backward.  A dimension of one can be anywhere."""
    b, h, s, d = x_shape = x.shape
    moves = h > 1 < s

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        if g.columns:
            return (PaperTensor(x_shape, g.dtype, g.storage, base=g, columns=True),)
        return (_view_of(g, x_shape, swapped=moves and not g.swapped),)

    node = record(x.paper, "transpose", [x], backward)
    return PaperTensor((b, s, h, d), x.dtype, x.storage, node, base=x, swapped=moves and not x.swapped)


def transpose(x: PaperTensor) -> PaperTensor:
    """``x.T`` of a matrix: no memory, forward and backward."""
    rows, columns = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (_view_of(g, (rows, columns), swapped=g.swapped),)

    node = record(x.paper, "transpose", [x], backward)
    return PaperTensor((columns, rows), x.dtype, x.storage, node, base=x, swapped=x.swapped)


def expanded(x: PaperTensor, n_heads: int) -> PaperTensor:
    """``x.expand(-1, n_heads, -1, -1)`` of a single head: no memory; backward sums over the heads."""
    b, _, s, d = x_shape = x.shape
    node = record(x.paper, "expand", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return PaperTensor((b, n_heads, s, d), x.dtype, x.storage, node, base=x)


def contiguous(x: PaperTensor) -> PaperTensor:
    """``x.contiguous()`` of a tensor whose dimensions are swapped: a copy; nothing is saved."""
    return empty(x.paper, x.shape, x.dtype, record(x.paper, "contiguous", [x], lambda g, _: (g,)))


# ---------------------------------------------------------------------------------------------- elementwise


def to(x: PaperTensor, dtype: str) -> PaperTensor:
    """``x.to(dtype)``: ``x`` itself, or a copy; backward casts the gradient back."""
    if x.dtype == dtype:
        return x
    x_dtype = x.dtype

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (like(g, dtype=x_dtype) if g.dtype != x_dtype else g,)

    return like(x, record(x.paper, f"to {dtype}", [x], backward), dtype)


def clone(x: PaperTensor) -> PaperTensor:
    """``x.clone()``: a copy; the gradient passes through."""
    return like(x, record(x.paper, "clone", [x], lambda g, _: (g,)))


def add(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``a + b``: the result; both gradients are the incoming one."""

    def backward(g: PaperTensor, needs: list[bool]) -> Gradients:
        return g if needs[0] else None, g if needs[1] else None

    return like(a, record(a.paper, "add", [a, b], backward), _promoted(a, b))


def add_in_place(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``a += b``: no memory; both gradients are the incoming one."""

    def backward(g: PaperTensor, needs: list[bool]) -> Gradients:
        return g if needs[0] else None, g if needs[1] else None

    node = record(a.paper, "add_", [a, b], backward)
    return PaperTensor(a.shape, a.dtype, a.storage, node, swapped=a.swapped)


def add_scalar(x: PaperTensor) -> PaperTensor:
    """``x + c``: the result; the gradient passes through."""
    return like(x, record(x.paper, "add scalar", [x], lambda g, _: (g,)))


def scale(x: PaperTensor) -> PaperTensor:
    """``x * c``: the result; backward makes one of the same size.  Nothing is saved."""
    return like(x, record(x.paper, "mul scalar", [x], lambda g, _: (_gradient(g),)))


def scale_in_place(x: PaperTensor) -> PaperTensor:
    """``x *= c`` or ``x /= c``: no memory; backward makes a gradient.  Nothing is saved."""
    node = record(x.paper, "mul_", [x], lambda g, _: (like(g),))
    return PaperTensor(x.shape, x.dtype, x.storage, node, swapped=x.swapped)


def negate(x: PaperTensor) -> PaperTensor:
    """``-x``: the result; backward makes one of the same size."""
    return like(x, record(x.paper, "neg", [x], lambda g, _: (_gradient(g),)))


def mul(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``a * b``: each side is saved only if the other needs a gradient; a gradient has the result's shape first."""

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_b = _gradient(g) if needs[1] else None
        grad_a = _gradient(g) if needs[0] else None
        return grad_a, grad_b

    saved = (a if b.requires_grad else None, b if a.requires_grad else None)
    node = record(a.paper, "mul", [a, b], backward, saved)
    return like(max(a, b, key=lambda x: (x.numel, len(x.shape))), node, _promoted(a, b))


def mul_in_place(x: PaperTensor, constant: PaperTensor) -> PaperTensor:
    """``x *= constant``, where the constant needs no gradient: saves it; backward makes one of the size of ``x``."""
    node = record(x.paper, "mul_", [x], lambda g, _, _saved: (_gradient(g),), (constant,))
    return PaperTensor(x.shape, x.dtype, x.storage, node, swapped=x.swapped)


def subtract(x: PaperTensor, constant: PaperTensor) -> PaperTensor:
    """``x - constant``, where the constant needs no gradient: the result; the gradient passes through."""
    return like(x, record(x.paper, "sub", [x], lambda g, _: (g,)), _promoted(x, constant))


def divide(x: PaperTensor, constant: PaperTensor) -> PaperTensor:
    """``x / constant``, where the constant needs no gradient: saves it; backward makes one of the result's size."""
    return like(x, record(x.paper, "div", [x], lambda g, _, _saved: (_gradient(g),), (constant,)))


def power(x: PaperTensor) -> PaperTensor:
    """``x.pow(c)``: saves ``x``.  Backward is ``grad * (c * x.pow(c - 1))``: two temporaries, freed with it."""

    def backward(_g: PaperTensor, _: list[bool], saved: PaperTensor) -> Gradients:
        power = like(saved)
        doubled = like(saved)
        grad = like(saved)
        del power, doubled
        return (grad,)

    return like(x, record(x.paper, "pow", [x], backward, (x,)))


def square(x: PaperTensor) -> PaperTensor:
    """``x.pow(2)``."""
    return power(x)


def mean_last(x: PaperTensor) -> PaperTensor:
    """``x.mean(-1, keepdim=True)``: one element a row; backward divides an expanded gradient, at full size."""
    x_shape = x.shape
    node = record(x.paper, "mean", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return empty(x.paper, (*x_shape[:-1], 1), x.dtype, node)


def rsqrt(x: PaperTensor) -> PaperTensor:
    """``torch.rsqrt(x)``: saves its result.  Backward is ``-0.5 * grad * result.pow(3)``: two temporaries."""

    def backward(_g: PaperTensor, _: list[bool], result: PaperTensor) -> Gradients:
        cubed = like(result)
        scaled = like(result)
        grad = like(result)
        del cubed, scaled
        return (grad,)

    node = record(x.paper, "rsqrt", [x], backward)
    result = like(x, node)
    save_output(node, result)
    return result


def silu(x: PaperTensor) -> PaperTensor:
    """``F.silu(x)``: saves ``x``; backward makes one of its size."""
    return like(x, record(x.paper, "silu", [x], lambda _g, _, saved: (like(saved),), (x,)))


def clamp_in_place(x: PaperTensor) -> PaperTensor:
    """``x.clamp_(min, max)``: saves a copy of what ``x`` was.  Backward asks that copy for both bounds."""

    def backward(g: PaperTensor, _: list[bool], saved: PaperTensor) -> Gradients:
        above, below = like(saved, dtype="bool"), like(saved, dtype="bool")
        grad = _gradient(g)
        del above, below
        return (grad,)

    before = like(x) if x.requires_grad and x.paper.grad_enabled else None
    node = record(x.paper, "clamp", [x], backward, (before,))
    return PaperTensor(x.shape, x.dtype, x.storage, node, swapped=x.swapped)


def dropout(x: PaperTensor) -> PaperTensor:
    """``F.dropout`` in training: ``native_dropout`` makes a mask of a byte an element, which is saved, and the result.

    Backward makes one of the gradient's size.
    """
    node = record(x.paper, "dropout", [x], lambda g, _, _mask: (_gradient(g),))
    mask = like(x, dtype="bool")
    result = like(x, node)
    save_output(node, mask)
    return result


def dropped(x: PaperTensor, probability: float) -> PaperTensor:
    """A dropout of the model in training: ``x`` itself where the probability is 0."""
    return dropout(x) if probability else x


# -------------------------------------------------------------------------------------- autocast and matmul


def cast_for_matmul(x: PaperTensor) -> PaperTensor:
    """What autocast makes of an argument of a matrix multiplication.

    The cast of a leaf that requires a gradient is kept until autocast ends (or, in a recomputation, until that
    ends); no other cast is.  Source: ``autocast_mode.cpp`` (``cached_cast``).
    """
    paper = x.paper
    if paper.autocast_dtype is None or x.dtype != "fp32":
        return x
    if not x.trainable:
        return to(x, paper.autocast_dtype)
    key = id(x)
    if key not in paper.autocast_cache:
        paper.autocast_cache[key] = (paper.layer, to(x, paper.autocast_dtype))
    return paper.autocast_cache[key][1]


def use_cublas(paper: Paper) -> None:
    """A multiplication through cuBLAS: the first one of a thread allocates the workspace of its handle, for good.

    The handle is asked for when the result is already there.

    Source: torch 2.14.1 ``aten/src/ATen/cuda/CublasHandlePool.cpp``.
    """
    if paper.thread not in paper.workspaces:
        n_bytes = cublas_workspace_bytes(paper.gpu.capability)
        outer = paper.role, paper.rule
        paper.role, paper.rule = Role(Kind.WORKSPACE, f"cuBLAS handle of the {paper.thread} thread"), ""
        paper.workspaces[paper.thread] = Storage(paper, n_bytes, (n_bytes,), "uint8")
        paper.role, paper.rule = outer


def matmul(x: PaperTensor, weight: PaperTensor, bias: PaperTensor | None = None) -> PaperTensor:
    """``F.linear(x, weight, bias)``: ``x[..., k] @ weight[n, k].T``.

    Saves ``x`` only if the weight needs a gradient and the weight only if ``x`` does.  Both gradients
    come out of views (of ``[tokens, k]``, of the transpose), so no other gradient is added to them in place, unless
    ``x`` is a matrix by itself.
    ``mm`` (without bias) makes the weight's first, ``addmm`` that of ``x``; the bias gets the incoming gradient,
    which the engine sums over its rows.
    """
    x_shape, weight_shape = x.shape, weight.shape
    has_bias = bias is not None

    def grad_of_weight(g: PaperTensor) -> PaperTensor:
        product = empty(g.paper, weight_shape, g.dtype)
        use_cublas(g.paper)
        return _view_of(product, weight_shape, swapped=False)

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_x = grad_weight = None
        rows = _flat(g, g.shape)  # noqa: F841 - lives until this returns
        if needs[1] and not has_bias:
            grad_weight = grad_of_weight(g)
        if needs[0]:
            flat = empty(g.paper, x_shape, g.dtype)
            grad_x = flat if len(x_shape) == 2 else _view_of(flat, x_shape, swapped=False)
            use_cublas(g.paper)
        if needs[1] and has_bias:
            grad_weight = grad_of_weight(g)
        return grad_x, grad_weight, g if needs[2] else None

    saved = (x if weight.requires_grad else None, weight if x.requires_grad else None)
    node = record(x.paper, "matmul", [x, weight, bias], backward, saved)
    out = empty(x.paper, (*x_shape[:-1], weight_shape[0]), x.dtype, node)
    if has_bias and x.paper.older.lt_workspace:
        _use_cublas_lt(x.paper)
    else:
        use_cublas(x.paper)
    return out


def _use_cublas_lt(paper: Paper) -> None:
    """A product with a bias runs through cuBLASLt, in torch 2.4.1 with a workspace of its own, which goes at once.

    It asks for the handle, cuBLAS' own, when that workspace is there (``gemm_and_bias``).
    """
    workspace = empty(paper, (LT_WORKSPACE_BYTES,), "uint8", kind=Kind.WORKSPACE)
    use_cublas(paper)
    del workspace


def linear(x: PaperTensor, weight: PaperTensor, bias: PaperTensor | None = None) -> PaperTensor:
    """``F.linear`` under autocast: the weight is cast before the input (arguments are evaluated from the right)."""
    bias = None if bias is None else cast_for_matmul(bias)
    weight = cast_for_matmul(weight)
    x = cast_for_matmul(x)
    return matmul(x, weight, bias)


def fold(x: PaperTensor) -> PaperTensor:
    """``[b, h, s, d]`` as ``[b * h, s, d]`` for ``bmm``: swapped or expanded heads are copied if b is above 1."""
    is_expanded = x.base is not None and x.base.numel < x.numel
    if not (x.swapped or is_expanded) or x.shape[0] == 1:
        return x
    return empty(x.paper, x.shape, x.dtype, record(x.paper, "reshape", [x], lambda g, _: (g,)))


def batched_matmul(a: PaperTensor, b: PaperTensor, *, transpose_b: bool) -> PaperTensor:
    """``torch.matmul`` of two ``[b, h, ., .]`` tensors: saves both; what autocast has cast lives until it returns."""
    cast_b = cast_for_matmul(b)
    cast_a = cast_for_matmul(a)
    a, b = fold(cast_a), fold(cast_b)
    a_shape, b_shape = a.shape, b.shape

    def backward(g: PaperTensor, _: list[bool], _a: PaperTensor, _b: PaperTensor) -> Gradients:
        # The gradient of a transposed matrix is made transposed.
        grad_b = empty(g.paper, b_shape, g.dtype, columns=transpose_b)
        grad_a = empty(g.paper, a_shape, g.dtype)
        return grad_a, grad_b

    node = record(a.paper, "bmm", [a, b], backward, (a, b))
    product = empty(a.paper, (*a_shape[:3], b_shape[2] if transpose_b else b_shape[3]), a.dtype, node)
    del a, b, cast_a, cast_b  # the first argument ends first
    return _unfold(product)


def _unfold(x: PaperTensor) -> PaperTensor:
    """``[b * h, s, d]`` as ``[b, h, s, d]``: a view; a gradient with swapped dimensions is copied if b is above 1."""
    x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        if g.swapped and x_shape[0] > 1:
            return (empty(g.paper, x_shape, g.dtype),)
        return (_view_of(g, x_shape, swapped=g.swapped),)

    node = record(x.paper, "unfold", [x], backward)
    return PaperTensor(x_shape, x.dtype, x.storage, node, base=x, swapped=x.swapped)


def tokens(x: PaperTensor) -> int:
    """How many rows a multiplication sees: all dimensions but the last."""
    return prod(x.shape[:-1])
