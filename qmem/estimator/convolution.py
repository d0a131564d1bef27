"""A causal convolution along the tokens, every channel by itself, on paper tensors.

Sources: transformers 5.23.0 ``models/qwen3_5/modeling_qwen3_5.py`` (``causal_conv1d_fn``, where the package
causal-conv1d is not installed); torch 2.14.1 ``aten/src/ATen/native/Convolution.cpp``, ``cuda/DepthwiseConv2d.cu``.
"""

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation
from qmem.estimator.operations import cast_for_matmul, to, view
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.slicing import part
from qmem.estimator.tape import Gradients, record

NATIVE_ELEMENTS = 2**31
"""From so many elements on torch takes cuDNN's kernel, whose workspace is not known."""


def causal_conv1d(x: PaperTensor, weight: PaperTensor, activation: Activation) -> PaperTensor:
    """``causal_conv1d_fn(x, weight.squeeze(1), activation)`` of ``[b, channels, s]``."""
    channels, _, kernel = weight.shape
    weight = view(weight, (channels, kernel))
    out = part(_conv1d(to(x, weight.dtype), view(weight, (channels, 1, kernel))), x.shape[-1])
    out = activation(out)
    return to(out, x.dtype)


def _conv1d(x: PaperTensor, weight: PaperTensor) -> PaperTensor:
    """``F.conv1d`` with as many groups as channels; autocast casts the arguments from the right."""
    cast_weight = cast_for_matmul(weight)
    return _depthwise(cast_for_matmul(x), cast_weight)


def _depthwise(x: PaperTensor, weight: PaperTensor) -> PaperTensor:
    """Torch's own kernel: what it gets is made contiguous, forward and backward; it always saves both arguments.

    Raises:
        UnsupportedError: cuDNN's kernel would run.
    """
    paper, x_shape, weight_shape = x.paper, x.shape, weight.shape
    b, channels, s = x_shape
    _check_kernel(x)

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor) -> Gradients:
        copied = empty(paper, x_shape, g.dtype) if is_swapped else None
        grad_weight = empty(paper, weight_shape, g.dtype) if needs[1] else None
        grad = empty(paper, x_shape, g.dtype) if needs[0] else None
        del copied
        return grad, grad_weight

    is_swapped = x.swapped
    node = record(paper, "conv1d", [x, weight], backward, (x, weight))
    copied = empty(paper, x_shape, x.dtype) if is_swapped else None
    out = empty(paper, (b, channels, s + weight_shape[-1] - 1), x.dtype, node)
    del copied
    return out


def _check_kernel(x: PaperTensor) -> None:
    if x.dtype == "fp16" or x.numel >= NATIVE_ELEMENTS:
        what = "in fp16" if x.dtype == "fp16" else f"of {x.numel:,} elements"
        raise UnsupportedError(
            f"a convolution {what}, which cuDNN runs, is not modelled yet", hint="compute in bf16, in smaller batches"
        )
