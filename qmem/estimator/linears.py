"""Linear layers on paper tensors: 16-bit, bitsandbytes' 4-bit and int8, and each with peft's LoRA around it.

Sources: bitsandbytes 0.50.2 ``nn/modules.py`` (``Linear4bit.forward``, ``Linear8bitLt.forward``); peft 0.21.2
``tuners/lora/bnb.py`` and ``tuners/lora/layer.py`` (``forward``).
"""

from qmem.estimator.dora import Adapter, with_dora
from qmem.estimator.int8 import Weight8bit, matmul_8bit
from qmem.estimator.operations import add, cast_for_matmul, clone, dropout, linear, matmul, scale, to, transpose
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, parameter
from qmem.estimator.quantized import Weight4bit, matmul_4bit
from qmem.job import Job
from qmem.ledger import Kind


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


class Conv1D(Linear):
    """``transformers.pytorch_utils.Conv1D``: a linear whose weight is ``[in, out]``."""

    def forward(self, x: PaperTensor) -> PaperTensor:
        """``torch.addmm(bias, x, weight)`` of all tokens as rows; arguments are cast from the right."""
        assert self.bias is not None, "a Conv1D has a bias"
        weight = cast_for_matmul(self.weight)
        x = cast_for_matmul(x)
        return matmul(x, transpose(weight), cast_for_matmul(self.bias))


class MatmulLinear(Linear):
    """``FalconLinear``: ``x @ weight.T + bias``, operation by operation."""

    def forward(self, x: PaperTensor) -> PaperTensor:
        """The transposed weight is no leaf, so autocast keeps no cast of it."""
        weight = cast_for_matmul(transpose(self.weight))
        hidden_states = matmul(cast_for_matmul(x), transpose(weight))
        return hidden_states if self.bias is None else add(hidden_states, self.bias)


class Linear4bit(Module):
    """``bitsandbytes.nn.Linear4bit``: computes in ``compute_dtype`` and returns its input's dtype."""

    def __init__(self, paper: Paper, role: str, weight: Weight4bit, bias: PaperTensor | None, job: Job) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight = weight
        self.bias = bias
        self.compute_dtype: str = job.compute_dtype
        self.follows_first_input = paper.older.computes_in_input_dtype

    def forward(self, x: PaperTensor) -> PaperTensor:
        """Cast, multiply, cast back.  A bias of another dtype is replaced by its cast for good."""
        input_dtype = x.dtype
        if self.follows_first_input:
            self.compute_dtype = self.compute_dtype if input_dtype == "fp16" else input_dtype
            self.follows_first_input = False
        x = to(x, self.compute_dtype)
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias = parameter(self.paper, self.bias.name, self.bias.shape, x.dtype, Kind.WEIGHT_16BIT)
        return to(matmul_4bit(x, self.weight, self.bias), input_dtype)


class Linear8bit(Module):
    """``bitsandbytes.nn.Linear8bitLt``: takes and returns any dtype."""

    def __init__(self, paper: Paper, role: str, weight: Weight8bit, bias: PaperTensor | None) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight = weight
        self.bias = bias

    def forward(self, x: PaperTensor) -> PaperTensor:
        """A bias of another dtype is replaced by its cast for good; it is added in place."""
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias = parameter(self.paper, self.bias.name, self.bias.shape, x.dtype, Kind.WEIGHT_16BIT)
        return matmul_8bit(x, self.weight)


class LoraQuantizedLinear(Module):
    """``peft.tuners.lora.bnb``: the adapter's result is added to the base's, which is cloned first if it is 4-bit."""

    def __init__(self, base: Linear4bit | Linear8bit, adapter: Adapter, drop: float) -> None:
        super().__init__(base.paper, base.role)
        self.base, self.adapter, self.dropout = base, adapter, drop

    def forward(self, x: PaperTensor) -> PaperTensor:
        """Without autocast the input is cast to the adapter's dtype and the output back."""
        base, adapter = self.base, self.adapter
        result = base(x)
        if isinstance(base, Linear4bit):
            result = clone(result)
        converts = self.paper.autocast_dtype is None
        expected_dtype = result.dtype
        if converts:
            x = to(x, adapter.a.dtype)
        if adapter.magnitude is None:
            output = _lora(x, adapter, self.dropout)
            if converts:
                output = to(output, expected_dtype)
            result = add(result, output)
        else:
            assert isinstance(base.weight, Weight4bit), "DoRA on an int8 base is refused"
            result = with_dora(x, result, base.weight, base.bias, adapter, self.dropout)
            if converts:
                result = to(result, expected_dtype)
        return result


class LoraLinear(Module):
    """``peft.tuners.lora.layer.Linear``: the input is always cast to the adapter's dtype, autocast or not."""

    def __init__(self, base: Linear, adapter: Adapter, drop: float) -> None:
        super().__init__(base.paper, base.role)
        self.base, self.adapter, self.dropout = base, adapter, drop

    def forward(self, x: PaperTensor) -> PaperTensor:
        """The sum is made in the wider dtype and cast back to the base's."""
        base, adapter = self.base, self.adapter
        result = base(x)
        result_dtype = result.dtype
        x = to(x, adapter.a.dtype)
        if adapter.magnitude is None:
            result = add(result, _lora(x, adapter, self.dropout))
        else:
            result = with_dora(x, result, base.weight, base.bias, adapter, self.dropout)
        result = to(result, result_dtype)
        return result  # noqa: RET504 - the sum goes before the cast input does, as in peft


def _lora(x: PaperTensor, adapter: Adapter, drop: float) -> PaperTensor:
    """``lora_B(lora_A(dropout(x))) * scaling``."""
    return scale(_project(_project(dropout(x) if drop else x, adapter.a), adapter.b))


def _project(x: PaperTensor, weight: PaperTensor) -> PaperTensor:
    """``lora_A`` or ``lora_B``, each a module: what it is called with lives until it returns."""
    return linear(x, weight)
