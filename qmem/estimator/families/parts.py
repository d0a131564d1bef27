"""What a family builds its program from, and what it hands back.

The tensors are there by now (``model.py``); a family decides which modules run over them and in which order.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qmem.architecture import Architecture
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.embeddings import Embedding
from qmem.estimator.fused_adapters import FusedParameter
from qmem.estimator.loss import Loss, causal_lm_loss
from qmem.estimator.norms import LayerNorm
from qmem.estimator.paper import Module, Paper, PaperTensor
from qmem.ledger import Kind


class CausalLM(NamedTuple):
    """A family's program.

    Attributes:
        decoder: ids ``[batch, seq]`` in, the last hidden state out.
        head: the last hidden state in, logits out, with all that the family does to them.
        loss: logits and labels in, the loss out.
        others: what else the model returns with its logits; its forward fills the list.
        slices_hidden: the model can take the last positions before its head, and slices where it takes all.
    """

    decoder: Module
    head: Module
    loss: Loss = causal_lm_loss
    others: list[PaperTensor] | None = None
    slices_hidden: bool = True


class Parts(NamedTuple):
    """The loaded, prepared and adapted model, by name.

    Attributes:
        architecture: the model's description; its config has been checked.
        attention: "sdpa" or "eager".
        checkpoint: runs a layer without keeping what its backward needs; ``None`` where the job does not ask for it.
        wants_input_grads: the embedding's result requires a gradient (``enable_input_require_grads``).
        under_trainer: transformers' Trainer runs the step, which turns the cache off in the model's own config only.
        linear: the module of a linear as it runs (quantized, adapted), by its name and the role that it is shown as.
        weight: the weight that a module uses, by the module's name; a trained copy where there is one.
        tensor: a parameter or a buffer that is not packed, by its full name; ``KeyError`` where there is none.
        linears_of: the names of a layer's linears, in order.
        fused: a parameter that a module uses itself and peft may have wrapped, by its full name: of experts, a router.
    """

    paper: Paper
    architecture: Architecture
    attention: str
    checkpoint: Checkpoint | None
    wants_input_grads: bool
    under_trainer: bool
    linear: Callable[..., Module]
    weight: Callable[[str], PaperTensor]
    tensor: Callable[[str], PaperTensor]
    linears_of: Mapping[int | None, Sequence[str]]
    fused: Callable[..., FusedParameter]

    @property
    def config(self) -> Mapping[str, Any]:
        """The fields that the family reads, with the defaults of transformers' config class."""
        return self.architecture.config

    @property
    def n_layers(self) -> int:
        """How many layers are walked."""
        return self.architecture.n_layers

    def layer_linears(self, layer: int) -> dict[str, Module]:
        """Every linear of a layer by its name within the layer: ``self_attn.q_proj``."""
        prefix = f"{self.architecture.layers_name}.{layer}."
        roles = ((name, name.removeprefix(prefix)) for name in self.linears_of[layer])
        return {role: self.linear(name, role) for name, role in roles}

    def layer_weight(self, layer: int, module: str) -> PaperTensor:
        """The weight of a module of a layer, by its name within the layer."""
        return self.weight(f"{self.architecture.layers_name}.{layer}.{module}")

    def layer_norm(self, module: str, role: str, *, weight: bool = True, bias: bool = True) -> LayerNorm:
        """The layer norm of that full name, with or without weight and bias."""
        weight_ = self.tensor(f"{module}.weight") if weight else None
        return LayerNorm(self.paper, role, weight_, self.tensor(f"{module}.bias") if bias else None)

    def embedding(self) -> Embedding:
        """The input embedding."""
        return Embedding(self.paper, self.weight(self.architecture.embedding), wants_grad=self.wants_input_grads)

    def position_embedding(self, module: str) -> Embedding:
        """A learned embedding of positions, by its full name."""
        return Embedding(self.paper, self.tensor(f"{module}.weight"), role=module.rpartition(".")[2])

    def head(self) -> Module:
        """The output embedding as a plain linear."""
        return self.linear(self.architecture.head, "lm_head", Kind.LOGITS)


BY_LAYER = ("layer_types", "no_rope_layers")
"""Fields of configs that have a value for each layer."""


def layer_kinds(architecture: Architecture, quantized: Container[str], adapted: Iterable[str]) -> list[Any]:
    """What tells the layers of a model apart: their linears, those quantized and adapted, and what the config says."""
    config, prefix = architecture.config, f"{architecture.layers_name}."
    kinds: list[list[Any]] = [[] for _ in range(architecture.n_layers)]
    for linear in architecture.linears:
        if linear.layer is not None:
            kinds[linear.layer].append((linear.short_name, linear.weight_shape, linear.name in quantized))
    for name in adapted:
        if name.startswith(prefix):
            layer, _, module = name[len(prefix) :].partition(".")
            kinds[int(layer)].append(module)
    fields = [config[name] for name in BY_LAYER if name in config]
    return [[of, *(field[index] for field in fields)] for index, of in enumerate(kinds)]
