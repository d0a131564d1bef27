"""Activation functions on paper tensors, by the names that configs use (``ACT2FN``).

Sources: torch 2.14.1 ``derivatives.yaml``; transformers 5.23.0 ``activations.py``.
"""

from collections.abc import Callable

from qmem.errors import UnsupportedError
from qmem.estimator.operations import add, add_scalar, like, mul, scale, silu, square, to
from qmem.estimator.paper import PaperTensor
from qmem.estimator.tape import record, save_output

Activation = Callable[[PaperTensor], PaperTensor]


def gelu(x: PaperTensor) -> PaperTensor:
    """``F.gelu(x)``, exact or with tanh: saves ``x``; backward makes one of its size."""
    return like(x, record(x.paper, "gelu", [x], lambda _g, _, saved: (like(saved),), (x,)))


def tanh(x: PaperTensor) -> PaperTensor:
    """``torch.tanh(x)``: saves its result; backward makes one of its size."""
    return _saving_result(x, "tanh")


def sigmoid(x: PaperTensor) -> PaperTensor:
    """``torch.sigmoid(x)``: saves its result; backward makes one that lies as the incoming gradient does."""
    node = record(x.paper, "sigmoid", [x], lambda g, _, _result: (like(g),))
    result = like(x, node)
    save_output(node, result)
    return result


def relu(x: PaperTensor) -> PaperTensor:
    """``F.relu(x)``: saves its result; backward makes one of its size."""
    return _saving_result(x, "relu")


def _saving_result(x: PaperTensor, name: str) -> PaperTensor:
    node = record(x.paper, name, [x], lambda _g, _, result: (like(result),))
    result = like(x, node)
    save_output(node, result)
    return result


def gelu_new(x: PaperTensor) -> PaperTensor:
    """``NewGELUActivation``: ``0.5 * x * (1 + tanh(c * (x + 0.044715 * x³)))``, written out.

    Autocast takes powers in fp32, so all from there on is.
    """
    return mul(scale(x), add_scalar(tanh(scale(add(x, scale(_cube(x)))))))


def _cube(x: PaperTensor) -> PaperTensor:
    return square(x if x.paper.autocast_dtype is None else to(x, "fp32"))


ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu,
    "gelu_new": gelu_new,
    "relu": relu,
}
"""What is walked, by the config's name."""


def activation(name: str) -> Activation:
    """The function that a config names.

    Raises:
        UnsupportedError: naming those that are walked.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedError(
            f"the activation {name!r} is not modelled yet", hint=f"modelled are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
