"""peft's adapters of parameters, such as fused experts and their routers, on paper tensors.

A wrapper makes the adapted weight itself, once each forward, and a second time to check it; the module in it runs
with the adapted weight in the place of its own.  Sources: peft 0.21.2 ``tuners/lora/layer.py`` (``ParamWrapper``,
``_LoraFactorsProxy``, ``_LoraParameterProxy``); torch 2.14.1 ``nn/utils/parametrize.py``, ``derivatives.yaml``
(``baddbmm``, ``mm``).
"""

from typing import Any, NamedTuple

from qmem.estimator.dora import Adapter
from qmem.estimator.operations import add, cast_for_matmul, like, scale, to, use_cublas, view
from qmem.estimator.paper import Module, PaperTensor, empty
from qmem.estimator.tape import Gradients, record


class Cache:
    """``parametrize.cached()``: what adapted weights are kept till the outermost of nested wrappers returns."""

    def __init__(self) -> None:
        self.depth = 0
        self.weights: dict[int, PaperTensor] = {}

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth:
            self.weights = {}


class FusedParameter:
    """A parameter that a module uses, with or without an adapter.

    Attributes:
        weight: ``[out, in]``, or of experts ``[experts, out, in]``.
        adapter: peft's, if there is one; ``scaling`` is what its product is multiplied by.
        cache: shared by the parameters of a module.
        proxy: what is added to the weight while the wrapper runs.
    """

    def __init__(self, weight: PaperTensor, adapter: Adapter | None, scaling: float, cache: Cache) -> None:
        self.weight, self.adapter, self.scaling = weight, adapter, scaling
        self.cache = cache
        self.proxy: PaperTensor | Factors | None = None

    def read(self) -> PaperTensor:
        """The weight, or the adapted one, which is made at the first use."""
        if self.proxy is None:
            return self.weight
        weights = self.cache.weights
        if id(self) not in weights:
            weights[id(self)] = self.adapted()
        return weights[id(self)]

    def adapted(self) -> PaperTensor:
        """A weight made anew."""
        if isinstance(self.proxy, Factors):
            return _with_factors(self, self.proxy)
        assert self.proxy is not None, "only a wrapper's weight is adapted"
        return add(self.weight, self.proxy)

    def activate(self) -> None:
        """``_activate_lora``: the low-rank product, or for experts its factors; then a weight to check, and no more."""
        assert self.adapter is not None, "a wrapper has an adapter"
        stacked = len(self.weight.shape) > 2
        self.proxy = _factors(self, self.adapter) if stacked else _delta(self, self.adapter)
        self.adapted()

    def deactivate(self) -> None:
        """``_remove_parametrizations``."""
        self.proxy = None


class ParamWrapper(Module):
    """A module one of whose parameters is adapted."""

    def __init__(self, base: Module, parameter: FusedParameter) -> None:
        super().__init__(base.paper, base.role)
        self.base, self.parameter = base, parameter

    def forward(self, *inputs: Any) -> Any:
        """The module with the adapted weight in the place of its own."""
        self.parameter.activate()
        try:
            with self.parameter.cache:
                return self.base(*inputs)
        finally:
            self.parameter.deactivate()


def wrapped(base: Module, *parameters: FusedParameter) -> Module:
    """A module in the wrappers of its adapted parameters, the first innermost."""
    for parameter in parameters:
        base = ParamWrapper(base, parameter) if parameter.adapter else base
    return base


class Factors(NamedTuple):
    """Two stacks of small matrices whose products are added to a stack of weights; one of them must be copied first."""

    left: PaperTensor
    right: PaperTensor


def _delta(of: FusedParameter, adapter: Adapter) -> PaperTensor:
    """``get_delta_weight`` of one matrix: ``B @ A * scaling`` in the weight's dtype."""
    return to(scale(_product(adapter.b, adapter.a)), of.weight.dtype)


def _product(b: PaperTensor, a: PaperTensor) -> PaperTensor:
    """``B @ A``: saves each factor only if the other needs a gradient; the gradient of A comes first."""
    a = cast_for_matmul(a)
    b = cast_for_matmul(b)

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_a = empty(g.paper, a_shape, g.dtype) if needs[1] else None
        use_cublas(g.paper)
        grad_b = empty(g.paper, b_shape, g.dtype) if needs[0] else None
        return grad_b, grad_a

    a_shape, b_shape = a.shape, b.shape
    saved = (b if a.requires_grad else None, a if b.requires_grad else None)
    node = record(a.paper, "mm", [b, a], backward, saved)
    product = empty(a.paper, (b_shape[0], a_shape[1]), a.dtype, node)
    use_cublas(a.paper)
    return product


def _factors(of: FusedParameter, adapter: Adapter) -> Factors:
    """``get_delta_factors``: B and A expert by expert, in the weight's dtype."""
    n_experts, dtype = of.weight.shape[0], of.weight.dtype
    weight_a = view(adapter.a, (n_experts, adapter.a.shape[0] // n_experts, adapter.a.shape[1]))
    weight_b = _by_expert(adapter.b, n_experts)
    left = to(weight_b, dtype)
    return Factors(left, to(weight_a, dtype))


def _by_expert(b: PaperTensor, n_experts: int) -> PaperTensor:
    """``B.reshape(out, rank, experts).permute(2, 0, 1)``: a view; its gradient must be copied to become B's."""
    b_shape = b.shape
    node = record(b.paper, "permute", [b], lambda g, _: (empty(g.paper, b_shape, g.dtype),))
    shape = (n_experts, b_shape[0], b_shape[1] // n_experts)
    return PaperTensor(shape, b.dtype, b.storage, node, base=b)


def _with_factors(of: FusedParameter, by: Factors) -> PaperTensor:
    """``baddbmm(weight, left, right, alpha=scaling)``, in the weight's dtype whatever autocast says.

    The numbers of ``left``, an expert's B, lie far apart, so it is copied whenever it is multiplied.  A scaling other
    than 1 is a multiplication of its own in backward.
    """
    paper, scales = of.weight.paper, of.scaling != 1

    def backward(_g: PaperTensor, _: list[bool], right: PaperTensor, left: PaperTensor) -> Gradients:
        grad_left = _product_of_stacks(left, None, scales=scales)
        return None, grad_left, _product_of_stacks(right, left, scales=scales)

    node = record(paper, "baddbmm", [of.weight, by.left, by.right], backward, (by.right, by.left))
    folded = empty(paper, of.weight.shape, of.weight.dtype, node)
    copied = empty(paper, by.left.shape, by.left.dtype)
    use_cublas(paper)
    del copied
    return folded


def _product_of_stacks(shaped_like: PaperTensor, copied: PaperTensor | None, *, scales: bool) -> PaperTensor:
    """``bmm`` and ``* alpha``: a gradient; ``copied`` is the factor that must be copied first."""
    product = empty(shaped_like.paper, shaped_like.shape, shaped_like.dtype)
    copy = None if copied is None else like(copied)
    use_cublas(product.paper)
    del copy
    return like(product) if scales else product
