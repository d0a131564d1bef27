"""Linear layers on paper tensors: 16-bit, bitsandbytes' 4-bit, and both with peft's LoRA around them.

Sources: bitsandbytes 0.50.2 ``nn/modules.py`` (``Linear4bit.forward``), ``autograd/_functions.py``
(``MatMul4Bit``), ``backends/cuda/ops.py`` (``gemm_4bit``), ``functional.py`` (``quantize_4bit``,
``dequantize_4bit``); peft 0.21.2 ``tuners/lora/bnb.py`` and ``tuners/lora/layer.py`` (``forward``).
"""

from math import prod

from qmem.estimator.kernel_choice import uses_fused_gemm_4bit
from qmem.estimator.operations import add, clone, dropout, linear, scale, to, tokens, use_cublas
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty, parameter
from qmem.estimator.reductions import sum_rows
from qmem.estimator.storage import quantized_weight
from qmem.estimator.tape import Gradients, record
from qmem.job import Job
from qmem.ledger import Kind


class Weight4bit:
    """A weight that bitsandbytes has packed to 4 bits, with its quantization state.

    Quantizing holds the weight in the loaded dtype, its fp32 absmax and, with double quantization, the centred
    absmax besides what stays; the mean that centres it sums in parts (``functional.quantize_4bit``).
    """

    def __init__(self, paper: Paper, name: str, shape: tuple[int, int], job: Job) -> None:
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

        def keep(piece: str, kind: Kind = Kind.QUANT_STATE) -> PaperTensor:
            stored, owner = pieces[piece], name if piece == "weight" else f"{name}.{piece}"
            return parameter(paper, owner, stored.shape, stored.dtype, kind)

        loaded = parameter(paper, name, shape, job.dtype, Kind.WEIGHT_16BIT)
        self.nested = job.double_quant
        if self.nested:
            absmax = parameter(paper, f"{name}.absmax", (self.n_blocks,), "fp32", Kind.QUANT_STATE)
            packed = keep("weight", Kind.BASE_WEIGHT)
            state = [keep("quant_map"), keep("offset")]
            sum_rows(paper, 1, self.n_blocks)
            centred = parameter(paper, f"{name}.absmax", (self.n_blocks,), "fp32", Kind.QUANT_STATE)
            state += [keep("nested_absmax"), keep("absmax"), keep("nested_quant_map")]
            del centred, absmax
        else:
            state = [keep("absmax")]
            packed = keep("weight", Kind.BASE_WEIGHT)
            state.append(keep("quant_map"))
        del loaded
        self.tensors = [packed, *state]


def dequantized(weight: Weight4bit, paper: Paper, dtype: str) -> PaperTensor:
    """``dequantize_4bit``: with double quantization the fp32 absmax first, then the whole weight; absmax goes."""
    paper.rule = "dequantize_4bit"
    absmax = _absmax(weight, paper) if weight.nested else None
    full = empty(paper, weight.shape, weight.dtype, kind=Kind.DEQUANTIZED)
    del absmax
    return to(full, dtype)


def _absmax(weight: Weight4bit, paper: Paper) -> PaperTensor:
    return empty(paper, (weight.n_blocks,), "fp32", kind=Kind.DEQUANTIZED)


def matmul_4bit(x: PaperTensor, weight: Weight4bit) -> PaperTensor:
    """``bitsandbytes.matmul_4bit``: the fused kernel allocates its result only.

    Above the kernel's limits the forward dequantizes: absmax in fp32 twice (decoded, then with its offset), the
    weight in the input's dtype, all until the multiplication returns.  Backward always dequantizes.  Nothing but
    the packed weight is saved.
    """
    paper = x.paper
    n, k = weight.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        full = dequantized(weight, paper, g.dtype)
        paper.rule = "matmul_4bit backward"
        grad = empty(paper, (*g.shape[:-1], k), g.dtype)
        use_cublas(paper)
        del full
        return (grad,)

    node = record(paper, "matmul_4bit", [x], backward)
    out_shape = (*x.shape[:-1], n)
    gpu = paper.gpu
    if uses_fused_gemm_4bit(gpu.capability, gpu.sm_count, x.dtype, tokens(x), n, k, weight.block_size):
        return empty(paper, out_shape, x.dtype, node)
    held = [_absmax(weight, paper), _absmax(weight, paper)] if weight.nested else []
    held.append(empty(paper, weight.shape, x.dtype, kind=Kind.DEQUANTIZED))
    out = empty(paper, out_shape, x.dtype, node)
    use_cublas(paper)
    del held
    return out


class Linear(Module):
    """``torch.nn.Linear`` with a weight of its own dtype."""

    def __init__(
        self, paper: Paper, role: str, weight: PaperTensor, bias: PaperTensor | None, kind: Kind = Kind.INTERMEDIATE
    ) -> None:
        super().__init__(paper, Role(kind, role))
        self.weight = weight
        self.bias = bias

    def forward(self, x: PaperTensor) -> PaperTensor:
        """``F.linear``, under autocast where it is on."""
        return linear(x, self.weight, self.bias)


class Linear4bit(Module):
    """``bitsandbytes.nn.Linear4bit``: computes in ``compute_dtype`` and returns its input's dtype."""

    def __init__(self, paper: Paper, role: str, weight: Weight4bit, bias: PaperTensor | None, job: Job) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight = weight
        self.bias = bias
        self.compute_dtype = job.compute_dtype

    def forward(self, x: PaperTensor) -> PaperTensor:
        """Cast, multiply, cast back.  A bias of another dtype is replaced by its cast for good."""
        input_dtype = x.dtype
        x = to(x, self.compute_dtype)
        bias = self.bias
        if bias is not None and bias.dtype != x.dtype:
            self.bias = parameter(self.paper, bias.name, bias.shape, x.dtype, Kind.WEIGHT_16BIT)
        return to(matmul_4bit(x, self.weight), input_dtype)


class LoraLinear4bit(Module):
    """``peft.tuners.lora.bnb.Linear4bit``: the base's result is cloned, the adapter's is added."""

    def __init__(self, base: Linear4bit, a: PaperTensor, b: PaperTensor, drop: float) -> None:
        super().__init__(base.paper, base.role)
        self.base, self.lora_a, self.lora_b, self.dropout = base, a, b, drop

    def forward(self, x: PaperTensor) -> PaperTensor:
        """Without autocast the input is cast to the adapter's dtype and the output back."""
        result = self.base(x)
        result = clone(result)
        converts = self.paper.autocast_dtype is None
        expected_dtype = result.dtype
        if converts:
            x = to(x, self.lora_a.dtype)
        output = _lora(x, self.lora_a, self.lora_b, self.dropout)
        if converts:
            output = to(output, expected_dtype)
        result = add(result, output)
        return result  # noqa: RET504 - the local lives to the end of the frame, as in peft


class LoraLinear(Module):
    """``peft.tuners.lora.layer.Linear``: the input is always cast to the adapter's dtype, autocast or not."""

    def __init__(self, base: Linear, a: PaperTensor, b: PaperTensor, drop: float) -> None:
        super().__init__(base.paper, base.role)
        self.base, self.lora_a, self.lora_b, self.dropout = base, a, b, drop

    def forward(self, x: PaperTensor) -> PaperTensor:
        """The sum is made in the wider dtype and cast back to the base's."""
        result = self.base(x)
        result_dtype = result.dtype
        x = to(x, self.lora_a.dtype)
        result = add(result, _lora(x, self.lora_a, self.lora_b, self.dropout))
        return to(result, result_dtype)


def _lora(x: PaperTensor, a: PaperTensor, b: PaperTensor, drop: float) -> PaperTensor:
    """``lora_B(lora_A(dropout(x))) * scaling``."""
    return scale(linear(linear(dropout(x) if drop else x, a), b))


