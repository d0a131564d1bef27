"""Normalization on paper tensors: torch's layer norm and the norms that models write out themselves.

Owns the operator ``layer_norm`` and the norm modules; which one a model uses, and over what, its family decides.
Sources: torch 2.14.1 ``aten/src/ATen/native/cuda/layer_norm_kernel.cu``, ``derivatives.yaml``
(``native_layer_norm``), ``autocast_mode.h`` (``layer_norm`` runs in fp32); transformers 5.23.0
``models/*/modeling_*.py``.
"""

from math import prod

from qmem.estimator.operations import add_scalar, like, mean_last, mul, power, rsqrt, silu, square, to
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.reductions import WARP, sum_columns
from qmem.estimator.tape import Gradients, record, save_output
from qmem.ledger import Kind

MANY_ROWS = 64 * 1024
"""Above this many rows, and with few columns, a layer norm sums the gradients of its weight and bias in two passes
(``LaunchGammaBetaBackwardCUDAKernel``)."""

MAX_BLOCKS = 32 * 1024
"""Most thread blocks of the first of them."""


class RMSNorm(Module):
    """``LlamaRMSNorm`` and its copies: in fp32, result in the input's dtype (times the weight's)."""

    def __init__(self, paper: Paper, role: str, weight: PaperTensor) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight = weight

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``weight * (x * rsqrt(mean(x²) + ε))``."""
        input_dtype = hidden_states.dtype
        hidden_states = to(hidden_states, "fp32")
        variance = mean_last(square(hidden_states))
        hidden_states = mul(hidden_states, rsqrt(add_scalar(variance)))
        return mul(self.weight, to(hidden_states, input_dtype))


class Fp32WeightRMSNorm(RMSNorm):
    """``Olmo2RMSNorm``: multiplied with the weight before the cast back."""

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``(weight * (x * rsqrt(mean(x²) + ε))).to(x.dtype)``."""
        input_dtype = hidden_states.dtype
        hidden_states = to(hidden_states, "fp32")
        variance = mean_last(square(hidden_states))
        hidden_states = mul(hidden_states, rsqrt(add_scalar(variance)))
        return to(mul(self.weight, hidden_states), input_dtype)


class GemmaRMSNorm(RMSNorm):
    """``GemmaRMSNorm`` (1 to 3): the weight is stored less one, and all is fp32."""

    def forward(self, x: PaperTensor) -> PaperTensor:
        """``(x * rsqrt(mean(x²) + ε) * (1 + weight)).type_as(x)``."""
        output = _normed(to(x, "fp32"))
        output = mul(output, add_scalar(to(self.weight, "fp32")))
        return to(output, x.dtype)


class Gemma4RMSNorm(Module):
    """``Gemma4RMSNorm``: the reciprocal root is a power; the weight, where there is one, is taken as it is."""

    def __init__(self, paper: Paper, role: str, weight: PaperTensor | None) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight = weight

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``(x * (mean(x²) + ε) ** -0.5 * weight).type_as(x)``."""
        normed_output = _normed_by_power(to(hidden_states, "fp32"))
        if self.weight is not None:
            normed_output = mul(normed_output, to(self.weight, "fp32"))
        return to(normed_output, hidden_states.dtype)


def _normed_by_power(hidden_states: PaperTensor) -> PaperTensor:
    mean_squared = add_scalar(mean_last(square(hidden_states)))
    return mul(hidden_states, power(mean_squared))


class L2Norm(Module):
    """``Llama4TextL2Norm``: without a weight, in fp32."""

    def forward(self, x: PaperTensor) -> PaperTensor:
        """``(x * rsqrt(mean(x²) + ε)).type_as(x)``."""
        return to(_normed(to(x, "fp32")), x.dtype)


class CohereLayerNorm(RMSNorm):
    """``CohereLayerNorm``: a layer norm without bias, step by step in fp32."""

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """The mean is subtracted twice, once for the variance and once for the result."""
        input_dtype = hidden_states.dtype
        hidden_states = to(hidden_states, "fp32")
        mean = mean_last(hidden_states)
        variance = mean_last(square(_minus(hidden_states, mean)))
        hidden_states = mul(_minus(hidden_states, mean), rsqrt(add_scalar(variance)))
        hidden_states = mul(to(self.weight, "fp32"), hidden_states)
        return to(hidden_states, input_dtype)


def _minus(x: PaperTensor, mean: PaperTensor) -> PaperTensor:
    """``x - mean``: the gradient of ``mean`` is the negated one, at full size; that of ``x`` passes through."""

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        negated = like(g)
        return g, negated

    return like(x, record(x.paper, "sub", [x, mean], backward))


def _normed(x: PaperTensor) -> PaperTensor:
    return mul(x, rsqrt(add_scalar(mean_last(square(x)))))


class Fp32LayerNorm(Module):
    """``OlmoLayerNorm``: without weight or bias, in fp32."""

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``F.layer_norm(x.to(fp32)).to(x.dtype)``."""
        return to(layer_norm(to(hidden_states, "fp32"), None, None), hidden_states.dtype)


class GatedRMSNorm(Module):
    """``Qwen3_5RMSNormGated``: Llama's norm, then times the SiLU of a gate in fp32."""

    def __init__(self, paper: Paper, role: str, weight: PaperTensor) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight = weight

    def forward(self, hidden_states: PaperTensor, gate: PaperTensor) -> PaperTensor:
        """``(weight * norm(x) * silu(gate)).to(x.dtype)``."""
        input_dtype = hidden_states.dtype
        hidden_states = to(hidden_states, "fp32")
        variance = mean_last(square(hidden_states))
        hidden_states = mul(hidden_states, rsqrt(add_scalar(variance)))
        hidden_states = mul(self.weight, to(hidden_states, input_dtype))
        hidden_states = mul(hidden_states, silu(to(gate, "fp32")))
        return to(hidden_states, input_dtype)


class T5LayerNorm(RMSNorm):
    """``T5LayerNorm``: the variance in fp32, the rest in the wider dtype, and cast to a 16-bit weight's."""

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """``weight * (x * rsqrt(mean(x²) + ε))``."""
        variance = mean_last(square(to(hidden_states, "fp32")))
        hidden_states = mul(hidden_states, rsqrt(add_scalar(variance)))
        if self.weight.dtype != "fp32":
            hidden_states = to(hidden_states, self.weight.dtype)
        return mul(self.weight, hidden_states)


class LayerNorm(Module):
    """``torch.nn.LayerNorm``, with or without a weight and a bias."""

    def __init__(self, paper: Paper, role: str, weight: PaperTensor | None, bias: PaperTensor | None = None) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, role))
        self.weight, self.bias = weight, bias

    def forward(self, x: PaperTensor) -> PaperTensor:
        """``F.layer_norm``, in fp32 under autocast."""
        return layer_norm(x, self.weight, self.bias)


def layer_norm(x: PaperTensor, weight: PaperTensor | None, bias: PaperTensor | None) -> PaperTensor:
    """``F.layer_norm`` over the last dimension.  Under autocast all arguments are cast to fp32, from the right."""
    if x.paper.autocast_dtype is not None:
        bias = None if bias is None else to(bias, "fp32")
        weight = None if weight is None else to(weight, "fp32")
        x = to(x, "fp32")
    return _native_layer_norm(x, weight, bias)


def _native_layer_norm(x: PaperTensor, weight: PaperTensor | None, bias: PaperTensor | None) -> PaperTensor:
    """The result, then mean and reciprocal deviation of each row in fp32, which are saved with all inputs."""
    paper, shape = x.paper, x.shape
    rows = prod(shape[:-1])

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_x, grad_weight, grad_bias = (
            empty(paper, of, g.dtype) if needed else None
            for of, needed in zip((shape, shape[-1:], shape[-1:]), needs, strict=True)
        )
        if rows > MANY_ROWS and shape[-1] // WARP < paper.gpu.sm_count // 2:
            grad_weight, grad_bias = _summed_in_two_passes(rows, grad_weight, grad_bias)
        return grad_x, grad_weight, grad_bias

    node = record(paper, "layer norm", [x, weight, bias], backward, (bias, x, weight))
    out = empty(paper, shape, x.dtype, node)
    mean = empty(paper, (rows,), "fp32")
    rstd = empty(paper, (rows,), "fp32")
    save_output(node, mean, rstd)
    if node is not None:
        # The first that is saved is the first to be freed, where a list would begin with its last.
        node.saved.reverse()
    return out


def _summed_in_two_passes(
    rows: int, grad_weight: PaperTensor | None, grad_bias: PaperTensor | None
) -> tuple[PaperTensor | None, PaperTensor | None]:
    """Many short rows: the kernel leaves partial sums of 32 rows or more, which ``sum(0)`` adds into new gradients."""
    grads = [grad_weight, grad_bias]
    partial = [None if grad is None else _partial_sums(rows, grad) for grad in grads]
    del grad_weight, grad_bias
    for index, blocks in enumerate(partial):
        if blocks is not None:
            grads[index] = _column_sums(blocks)
    return grads[0], grads[1]


def _partial_sums(rows: int, grad: PaperTensor) -> PaperTensor:
    (columns,) = grad.shape
    blocks = min(MAX_BLOCKS // -(-columns // WARP), -(-rows // WARP))
    return empty(grad.paper, (blocks, columns), grad.dtype)


def _column_sums(blocks: PaperTensor) -> PaperTensor:
    summed = empty(blocks.paper, blocks.shape[1:], blocks.dtype)
    sum_columns(blocks.paper, *blocks.shape)
    return summed
