"""bitsandbytes' 4-bit weights on paper: packing, unpacking, and the product with one.

Sources: bitsandbytes 0.50.2 ``functional.py`` (``quantize_4bit``, ``dequantize_4bit``), ``nn/modules.py``
(``Params4bit``), ``autograd/_functions.py`` (``MatMul4Bit``), ``backends/cuda/ops.py`` (``gemm_4bit``).
"""

from math import prod

from qmem.estimator.kernel_choice import uses_fused_gemm_4bit
from qmem.estimator.operations import linear, to, tokens, use_cublas
from qmem.estimator.paper import Paper, PaperTensor, empty, parameter
from qmem.estimator.reductions import sum_rows
from qmem.estimator.storage import quantization_shared, quantized_weight
from qmem.estimator.tape import Gradients, Node, record
from qmem.job import Job
from qmem.ledger import Kind


class Weight4bit:
    """A weight that bitsandbytes has packed to 4 bits, with its quantization state.

    Quantizing holds the weight in the loaded dtype, its fp32 absmax and, with double quantization, the centred
    absmax besides what stays; the mean that centres it sums in parts (``functional.quantize_4bit``).  The first
    weight of a process also makes the tables that all share.

    Attributes:
        kept: its tensors by name, those of the quantization state among them.
    """

    def __init__(self, paper: Paper, name: str, shape: tuple[int, int], job: Job, *, shares_tables: bool) -> None:
        self.name = name
        self.shape = shape
        self.dtype = job.dtype
        self.block_size = job.block_size
        self.n_blocks = -(-prod(shape) // job.block_size)
        pieces = {
            piece.name: piece
            for piece in quantized_weight(
                shape,
                "fp4" if job.effective_quant == "fp4" else "nf4",
                double_quant=job.double_quant,
                block_size=job.block_size,
                quant_storage=job.quant_storage,
            )
        }

        def keep(piece: str, kind: Kind = Kind.QUANT_STATE) -> None:
            stored, owner = pieces[piece], name if piece == "weight" else f"{name}.{piece}"
            self.kept[piece] = parameter(paper, owner, stored.shape, stored.dtype, kind)

        self.kept: dict[str, PaperTensor] = {}
        self.nested = job.double_quant
        loaded = parameter(paper, name, shape, job.dtype, Kind.WEIGHT_16BIT)
        absmax = None
        if self.nested:
            absmax = parameter(paper, f"{name}.absmax", (self.n_blocks,), "fp32", Kind.QUANT_STATE)
        else:
            keep("absmax")
        keep("weight", Kind.BASE_WEIGHT)
        keep("quant_map")
        _normalize_code(paper)
        if absmax is not None:
            keep("offset")
            sum_rows(paper, 1, self.n_blocks)
            centred = None
            if not paper.older.centres_in_place:
                centred = parameter(paper, f"{name}.absmax", (self.n_blocks,), "fp32", Kind.QUANT_STATE)
            if shares_tables:
                self.shared = _shared_tables(paper)
            keep("nested_absmax")
            keep("absmax")
            if not paper.older.shares_nested_map:
                keep("nested_quant_map")
            del centred, absmax
        del loaded

    @property
    def paper(self) -> Paper:
        """The process the weight lives in."""
        return self.kept["weight"].paper

    def copied(self, bias: PaperTensor | None) -> list[PaperTensor]:
        """``deepcopy`` of the module that holds it: the weight with its state, the bias, and the state once more."""
        state = [self.kept[piece] for piece in _STATE if piece in self.kept]
        copies = [_deepcopied(tensor) for tensor in (*state, self.kept["weight"])]
        if bias is not None:
            copies.append(empty(self.paper, bias.shape, bias.dtype))
        return copies + [_deepcopied(tensor) for tensor in state]


_STATE = ("absmax", "quant_map", "offset", "nested_absmax", "nested_quant_map")
"""The tensors of a ``QuantState``, in the order of its attributes."""


def _deepcopied(tensor: PaperTensor) -> PaperTensor:
    """A copy of the storage; the new tensor first had one element of its own."""
    copy = empty(tensor.paper, tensor.shape, tensor.dtype)
    placeholder = empty(tensor.paper, (1,), tensor.dtype)
    del placeholder
    return copy


def _normalize_code(paper: Paper) -> None:
    """``get_4bit_type``: the code is divided by the largest of its absolute values."""
    paper.rule = "largest value of the code"
    absolute = empty(paper, (16,), "fp32")
    largest = empty(paper, (), "fp32")
    del absolute, largest


def _shared_tables(paper: Paper) -> list[PaperTensor]:
    return [
        parameter(paper, f"bitsandbytes.{piece.name}", piece.shape, piece.dtype, Kind.QUANT_STATE)
        for piece in quantization_shared(double_quant=True)
    ]


def dequantized(weight: Weight4bit) -> PaperTensor:
    """``dequantize_4bit``: with double quantization the fp32 absmax first, then the whole weight; absmax goes."""
    paper = weight.paper
    paper.rule = "dequantize_4bit"
    absmax = _absmax(weight, paper) if weight.nested else None
    full = empty(paper, weight.shape, weight.dtype, kind=Kind.DEQUANTIZED)
    del absmax
    return full


def _absmax(weight: Weight4bit, paper: Paper) -> PaperTensor:
    return empty(paper, (weight.n_blocks,), "fp32", kind=Kind.DEQUANTIZED)


def matmul_4bit(x: PaperTensor, weight: Weight4bit, bias: PaperTensor | None = None) -> PaperTensor:
    """``bitsandbytes.matmul_4bit``: the fused kernel allocates its result only.

    Above the kernel's limits the forward dequantizes: absmax in fp32 twice (decoded, then with its offset), the
    weight in the input's dtype, all until the multiplication returns.  Backward always dequantizes.  Nothing but
    the packed weight is saved.
    """
    paper = x.paper
    n, k = weight.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        full = to(dequantized(weight), g.dtype)
        paper.rule = "matmul_4bit backward"
        grad = empty(paper, (*g.shape[:-1], k), g.dtype)
        use_cublas(paper)
        del full
        return (grad,)

    node = record(paper, "matmul_4bit", [x], backward)
    out_shape = (*x.shape[:-1], n)
    if paper.older.always_dequantizes:
        return _product_with_dequantized(x, weight, bias, node)
    gpu = paper.gpu
    if uses_fused_gemm_4bit(gpu.capability, gpu.sm_count, x.dtype, tokens(x), n, k, weight.block_size):
        return empty(paper, out_shape, x.dtype, node)
    decoded = _absmax(weight, paper) if weight.nested else None
    shifted = _absmax(weight, paper) if weight.nested else None
    full = empty(paper, weight.shape, x.dtype, kind=Kind.DEQUANTIZED)
    out = empty(paper, out_shape, x.dtype, node)
    use_cublas(paper)
    del shifted, decoded, full
    return out


def _product_with_dequantized(
    x: PaperTensor, weight: Weight4bit, bias: PaperTensor | None, node: Node | None
) -> PaperTensor:
    """``MatMul4Bit.forward`` of bitsandbytes 0.43.3: a plain product, which autocast still casts."""
    paper = x.paper
    outer, paper.grad_enabled = paper.grad_enabled, False
    full = to(dequantized(weight), x.dtype)
    product = linear(x, full, bias)
    del full
    paper.grad_enabled = outer
    return PaperTensor(product.shape, product.dtype, product.storage, node)
