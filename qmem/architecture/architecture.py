"""The description of a model: every tensor and every linear by name and shape.

It owns the value types that describe a model and knows nothing of config.json, bytes, dtypes of a job or libraries.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, Literal, NamedTuple

Role = Literal[
    "embedding", "position embedding", "type embedding", "layer embedding", "head", "norm", "linear", "expert",
    "router", "bias", "adapter", "convolution", "gate",
]  # fmt: skip
"""What a parameter is for.  The bias of a norm is ``norm``; ``bias`` is the bias of a linear; ``gate`` is what decides
how fast linear attention learns and forgets."""

EMBEDDINGS = ("embedding", "position embedding", "type embedding", "layer embedding")
"""Roles of parameters that an ``nn.Embedding`` holds."""

BufferDtype = Literal["fp32", "bool", "int64", "model"]
"""The dtype of a buffer; ``model`` is the dtype that the model is loaded in."""


class Parameter(NamedTuple):
    """A parameter under the name that transformers or peft gives it."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def module(self) -> str:
        """The module that holds it: ``model.norm`` for ``model.norm.weight``."""
        return self.name.rpartition(".")[0]


class Buffer(NamedTuple):
    """A tensor that a module holds and nothing trains, such as the frequencies of rotary embeddings."""

    name: str
    shape: tuple[int, ...]
    dtype: BufferDtype
    persistent: bool = False


class Linear(NamedTuple):
    """An ``nn.Linear``, or GPT-2's ``Conv1D``, whose weight lies the other way round, (in, out).

    Attributes:
        name: the module's name, without ``.weight``.
        layer: the index of its transformer layer; ``None`` outside the layers.
        role: of its weight: ``linear``, ``expert``, ``router`` or ``head``.
        plain: whether its class is ``nn.Linear`` or ``Conv1D`` itself and not one derived from it.
    """

    name: str
    out_features: int
    in_features: int
    bias: bool = False
    layer: int | None = None
    conv1d: bool = False
    role: Role = "linear"
    plain: bool = True

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of its weight, as the module stores it."""
        return (self.in_features, self.out_features) if self.conv1d else (self.out_features, self.in_features)

    @property
    def short_name(self) -> str:
        """The last word of its name: ``q_proj``."""
        return self.name.rpartition(".")[2]


class Architecture(NamedTuple):
    """A causal language model as transformers builds it.

    Attributes:
        family: the config's ``model_type``.
        config: the fields that the family reads, checked, with the defaults of transformers' config class.
        parameters: in the order of ``named_parameters()``; the weight of a tied head is absent.
        buffers: in the order of ``named_buffers()``.
        linears: every linear in the order of ``named_modules()``, the head included.
        modules: the name of every module, in no particular order (the root has none).
        n_layers: how many transformer layers.
        layers_name: the list that holds them: ``model.layers``.
        embedding: the name of the input embedding's module.
        head: the name of the output embedding's module.
        tied_head: whether the head shares the embedding's weight.
        hidden_size, vocab_size: width of the hidden states, rows of the embedding.
        max_positions: the longest sequence the config provides for; ``None`` where positions have no end (ALiBi).
        learned_positions: whether a position beyond is not only untrained but absent.
        fused_experts: whether experts are 3-D parameters (transformers 5) or linears; only of interest with experts.
    """

    family: str
    config: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    buffers: tuple[Buffer, ...]
    linears: tuple[Linear, ...]
    modules: frozenset[str]
    n_layers: int
    layers_name: str
    embedding: str
    head: str
    tied_head: bool
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    learned_positions: bool
    fused_experts: bool

    @property
    def n_parameters(self) -> int:
        """How many elements all parameters have, a tied head counted once."""
        return sum(parameter.numel for parameter in self.parameters)


def position_warning(architecture: Architecture, seq: int) -> str | None:
    """A sentence when ``seq`` tokens are more than the model's positions, else nothing."""
    positions = architecture.max_positions
    if positions is None or seq <= positions:
        return None
    if architecture.learned_positions:
        return f"sequence {seq} is beyond the {positions} positions that the model has embeddings for: it cannot run"
    return f"sequence {seq} is beyond the {positions} positions that the model was made for"
