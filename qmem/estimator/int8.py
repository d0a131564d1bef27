"""bitsandbytes' int8 weights on paper: quantizing, and the product with one.

How many columns of an input hold an outlier (an element of at least the threshold, 6.0 by default) is known only
when the model runs.  Here none does: each would be kept in 16 or 32 bit besides.

Sources: bitsandbytes 0.50.2 ``nn/modules.py`` (``Int8Params``), ``autograd/_functions.py`` (``MatMul8bitLt``),
``backends/cuda/ops.py`` (``int8_vectorwise_quant``, ``int8_linear_matmul``, ``int8_mm_dequant``).
"""

from qmem.estimator.operations import to, tokens, use_cublas
from qmem.estimator.paper import Paper, PaperTensor, empty, parameter
from qmem.estimator.reductions import sum_rows
from qmem.estimator.storage import int8_weight
from qmem.estimator.tape import Gradients, record
from qmem.job import Job
from qmem.ledger import Kind


class Weight8bit:
    """A weight in int8 with the scale of each row.

    Quantizing holds the weight as it was loaded and, unless that is fp16 already, a copy of it in fp16.
    """

    def __init__(self, paper: Paper, name: str, shape: tuple[int, int], job: Job) -> None:
        self.shape = shape
        loaded = parameter(paper, name, shape, job.dtype, Kind.WEIGHT_16BIT)
        half = to(loaded, "fp16")
        scales, packed = int8_weight(shape)
        self.scales = parameter(paper, f"{name}.{scales.name}", scales.shape, scales.dtype, Kind.QUANT_STATE)
        self.packed = parameter(paper, name, packed.shape, packed.dtype, Kind.BASE_WEIGHT)
        del half, loaded


class _Kept:
    """An input that a function's context keeps: it goes when the graph goes, in the layer that it was made for."""

    __slots__ = ("layer", "tensor")

    def __init__(self, tensor: PaperTensor) -> None:
        self.tensor = tensor.detached()
        self.layer = tensor.paper.layer

    def __del__(self) -> None:
        self.tensor.paper.enter_layer(self.layer)


def matmul_8bit(x: PaperTensor, weight: Weight8bit) -> PaperTensor:
    """``bitsandbytes.matmul`` with an int8 weight: the result is made in int32, then fp16, then the input's dtype.

    The function keeps its input where checkpointing does not see it: the memory lives as long as the graph, which
    is until the loss goes, with checkpointing too.  Backward makes the whole weight in the input's dtype.
    """
    paper, rows, dtype = x.paper, tokens(x), x.dtype
    n, k = weight.shape
    kept = _Kept(x)

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        full = empty(paper, (n, k), dtype, kind=Kind.DEQUANTIZED)
        scales = empty(paper, (n, 1), "fp32")
        del scales
        g = to(g, dtype)
        grad = empty(paper, kept.tensor.shape, dtype)
        use_cublas(paper)
        del full
        return (grad,)

    node = record(paper, "matmul_8bit", [x], backward)
    quantized = _quantized(x, rows, k)
    product = empty(paper, (rows, n), "int32")
    half = empty(paper, (rows, n), "fp16")
    out = half if x.dtype == "fp16" else empty(paper, (rows, n), x.dtype)
    del half, product, quantized
    return PaperTensor((*x.shape[:-1], n), x.dtype, out.storage, node, base=out)


def _quantized(x: PaperTensor, rows: int, columns: int) -> list[PaperTensor]:
    """``int8_vectorwise_quant``: scales of rows and int8 values, while outliers are looked for in fp16."""
    paper = x.paper
    half = empty(paper, x.shape, "fp16") if x.dtype != "fp16" else x
    values = [empty(paper, (rows,), "fp32"), empty(paper, (rows, columns), "int8")]
    absolute = empty(paper, x.shape, "fp16")
    outliers = empty(paper, x.shape, "bool")
    del absolute
    any_outlier = empty(paper, (), "bool")
    sum_rows(paper, 1, rows * columns, "bool")
    del any_outlier
    zero = empty(paper, (), "int8")
    del zero, outliers, half
    return values[::-1]
