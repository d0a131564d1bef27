"""The outline of a model: what stands before its layers, in them and after them.

A family writes an outline, with names relative to the layer; ``assemble`` writes out every tensor.
It owns the order and the full names, and knows no family.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qmem.architecture.architecture import Architecture, Buffer, Linear, Parameter, Role
from qmem.architecture.fields import Fields


class Block:
    """Modules in the order in which the real model registers them."""

    __slots__ = ("linears", "modules", "parameters")

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []
        self.linears: list[Linear] = []
        self.modules: list[str] = []

    def linear(
        self,
        name: str,
        out_features: int,
        in_features: int,
        *,
        bias: bool = False,
        role: Role = "linear",
        plain: bool = True,
    ) -> None:
        """An ``nn.Linear``, or where it is not ``plain`` a class derived from it."""
        self._add(Linear(name, out_features, in_features, bias, role=role, plain=plain))

    def conv1d(self, name: str, out_features: int, in_features: int) -> None:
        """A ``transformers.pytorch_utils.Conv1D``, which always has a bias."""
        self._add(Linear(name, out_features, in_features, bias=True, conv1d=True))

    def head(
        self, name: str, vocab_size: int, width: int, *, tied: bool, bias: bool = False, shares_bias: bool = False
    ) -> None:
        """The output embedding.  Tied to the input embedding it has no weight of its own."""
        self._add(Linear(name, vocab_size, width, bias, role="head"), shares_weight=tied, shares_bias=shares_bias)

    def norm(self, name: str, size: int, *, bias: bool = False, weight: bool = True) -> None:
        """A layer norm or RMS norm, with or without a weight and a bias."""
        self.modules.append(name)
        if weight:
            self.parameters.append(Parameter(f"{name}.weight", (size,), "norm"))
        if bias:
            self.parameters.append(Parameter(f"{name}.bias", (size,), "norm"))

    def embedding(self, name: str, rows: int, width: int, *, role: Role = "embedding") -> None:
        """An ``nn.Embedding``."""
        self.parameter(f"{name}.weight", (rows, width), role)

    def parameter(self, name: str, shape: tuple[int, ...], role: Role) -> None:
        """A parameter of a module that is neither linear, norm nor embedding."""
        self.modules.append(name.rpartition(".")[0])
        self.parameters.append(Parameter(name, shape, role))

    def without_parameters(self, *names: str) -> None:
        """Modules that hold no parameter: activations, dropouts, rotary embeddings."""
        self.modules.extend(names)

    def _add(self, linear: Linear, *, shares_weight: bool = False, shares_bias: bool = False) -> None:
        self.linears.append(linear)
        self.modules.append(linear.name)
        if not shares_weight:
            self.parameters.append(Parameter(f"{linear.name}.weight", linear.weight_shape, linear.role))
        if linear.bias and not shares_bias:
            self.parameters.append(Parameter(f"{linear.name}.bias", (linear.out_features,), "bias"))


class Outline(NamedTuple):
    """What a family says of a model.

    Attributes:
        opening: registered before the layers: embeddings, in some families the last norm.
        layers_name: the list of layers, ``model.layers``.
        layers: one block a layer, with names relative to it; equal layers may share a block.
        closing: registered after the layers, the head last.
        embedding: the name of the input embedding's module.
        hidden_size: width of the hidden states.
        max_positions: ``None`` where positions have no end.
    """

    opening: Block
    layers_name: str
    layers: Sequence[Block]
    closing: Block
    embedding: str
    hidden_size: int
    max_positions: int | None
    learned_positions: bool = False
    buffers: tuple[Buffer, ...] = ()


def assemble(family: str, outline: Outline, fields: Fields, *, fused_experts: bool) -> Architecture:
    """Every tensor of an outline under its full name."""
    blocks = _placed(outline)
    head = outline.closing.linears[-1]
    return Architecture(
        family=family,
        config=fields.values,
        parameters=tuple(
            Parameter(prefix + name, shape, role)
            for prefix, _, block in blocks
            for name, shape, role in block.parameters
        ),
        buffers=outline.buffers,
        linears=tuple(
            Linear(prefix + name, n_out, n_in, bias, layer, conv1d, role, plain)
            for prefix, layer, block in blocks
            for name, n_out, n_in, bias, _, conv1d, role, plain in block.linears
        ),
        modules=_with_parents(prefix + name for prefix, _, block in blocks for name in block.modules),
        n_layers=len(outline.layers),
        layers_name=outline.layers_name,
        embedding=outline.embedding,
        head=head.name,
        tied_head=all(parameter.name != f"{head.name}.weight" for parameter in outline.closing.parameters),
        hidden_size=outline.hidden_size,
        vocab_size=head.out_features,
        max_positions=outline.max_positions,
        learned_positions=outline.learned_positions,
        fused_experts=fused_experts,
    )


def _placed(outline: Outline) -> list[tuple[str, int | None, Block]]:
    """Each block with the prefix of its names and its layer."""
    layers = ((f"{outline.layers_name}.{index}.", index, block) for index, block in enumerate(outline.layers))
    return [("", None, outline.opening), *layers, ("", None, outline.closing)]


def _with_parents(names: Iterable[str]) -> frozenset[str]:
    """The names and those of all modules that contain them."""
    known: set[str] = set()
    for name in names:
        module = name
        while module and module not in known:
            known.add(module)
            module = module.rpartition(".")[0]
    return frozenset(known)
