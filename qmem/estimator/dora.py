"""DoRA on paper tensors: LoRA whose sum with the base weight is scaled row by row to a trained magnitude.

Every forward makes the whole adapter ``B @ A`` and the whole base weight, to know the norm of their sum.  Source:
peft 0.21.2 ``tuners/lora/dora.py`` (``DoraLinearLayer``), ``tuners/lora/variants.py`` (``DoraLinearVariant``).
"""

from typing import NamedTuple

from qmem.estimator.operations import (
    add,
    add_scalar,
    divide,
    dropout,
    linear,
    matmul,
    mul,
    scale,
    subtract,
    to,
    transpose,
    view,
)
from qmem.estimator.paper import PaperTensor, empty, parameter
from qmem.estimator.quantized import Weight4bit, dequantized
from qmem.estimator.reductions import sum_rows
from qmem.ledger import Kind

Weight = PaperTensor | Weight4bit
"""A base weight: of its own dtype, or packed to 4 bits."""


class Adapter(NamedTuple):
    """LoRA's A and B, and DoRA's magnitude vector where there is one."""

    a: PaperTensor
    b: PaperTensor
    magnitude: PaperTensor | None = None


def initial_magnitude(
    name: str, weight: Weight, bias: PaperTensor | None, a: PaperTensor, b: PaperTensor
) -> PaperTensor:
    """``DoraLinearLayer.update_layer``: the norms of the rows of ``weight + B @ A``, in the dtype of the adapter.

    A packed base is copied first, its quantization state twice (as a member of the weight and of the module).
    """
    paper = a.paper
    paper.rule = "DoRA's first magnitude"
    copied = weight.copied(bias) if isinstance(weight, Weight4bit) else []
    full = _full(weight)
    lora_weight = matmul(b, transpose(a))
    paper.rule = "DoRA's first magnitude"
    scaled = empty(paper, full.shape, full.dtype)
    summed = empty(paper, full.shape, full.dtype)
    del scaled
    magnitude = parameter(paper, name, full.shape[:1], full.dtype, Kind.ADAPTER)
    sum_rows(paper, full.shape[0], full.shape[1])
    while copied:
        del copied[0]
    del full, lora_weight, summed
    return magnitude


def _full(weight: Weight) -> PaperTensor:
    """``dequantize_module_weight``: a weight that is not packed is itself."""
    return dequantized(weight) if isinstance(weight, Weight4bit) else weight


def with_dora(
    x: PaperTensor, result: PaperTensor, weight: Weight, bias: PaperTensor | None, adapter: Adapter, drop: float
) -> PaperTensor:
    """``DoraLinearVariant.forward``: the base's result and what DoRA adds; dropout multiplies the base again."""
    base_result: PaperTensor | None = result
    if drop:
        x = dropout(x)
        base_result = None
    result = add(result, _dora(x, base_result, weight, bias, adapter))
    return result  # noqa: RET504 - the local lives to the end of the frame, as in peft


def _dora(
    x: PaperTensor, base_result: PaperTensor | None, weight: Weight, bias: PaperTensor | None, adapter: Adapter
) -> PaperTensor:
    """``DoraLinearLayer.forward``; the norm is a constant to autograd, though the adapter in it has a graph."""
    a, b, magnitude = adapter
    assert magnitude is not None, "only DoRA has a magnitude"
    lora_weight = to(_lora_weight(a, b), x.dtype)
    full = to(_full(weight), x.dtype)
    weight_norm = _weight_norm(full, lora_weight.detached())
    mag_norm_scale = view(divide(magnitude, weight_norm), (1, *magnitude.shape))
    lora_result = linear(linear(x, a), b)
    if base_result is None:
        base_result = linear(x, full)
    elif bias is not None:
        base_result = subtract(base_result, bias)
    return add(mul(add_scalar(mag_norm_scale), base_result), scale(mul(mag_norm_scale, lora_result)))


def _lora_weight(a: PaperTensor, b: PaperTensor) -> PaperTensor:
    """``B(A(identity)).T``: a square identity as wide as the input."""
    a.paper.rule = "identity"
    x_eye = empty(a.paper, (a.shape[1], a.shape[1]), a.dtype)
    return transpose(linear(linear(x_eye, a), b))


def _weight_norm(weight: PaperTensor, lora_weight: PaperTensor) -> PaperTensor:
    """``norm(weight + scaling * lora_weight, dim=1).to(weight.dtype)``; autocast takes norms in fp32."""
    weight = add(weight, scale(lora_weight))
    weight_norm = to(_norms_of_rows(weight), weight.dtype)
    return weight_norm  # noqa: RET504 - the local lives to the end of the frame, as in peft


def _norms_of_rows(weight: PaperTensor) -> PaperTensor:
    paper, (rows, columns) = weight.paper, weight.shape
    paper.rule = "norms of rows"
    norms = empty(paper, (rows,), "fp32" if paper.autocast_dtype else weight.dtype)
    sum_rows(paper, rows, columns)
    return norms
