"""What a family builds its program from, and what it hands back.

The tensors are there by now (``model.py``); a family decides which modules run over them and in which order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from qmem.architecture import Architecture
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.embeddings import Embedding
from qmem.estimator.paper import Module, Paper, PaperTensor
from qmem.ledger import Kind


class CausalLM(NamedTuple):
    """A family's program.

    Attributes:
        decoder: ids ``[batch, seq]`` in, the last hidden state out.
        head: the last hidden state in, logits out, with all that the family does to them.
    """

    decoder: Module
    head: Module


class Parts(NamedTuple):
    """The loaded, prepared and adapted model, by name.

    Attributes:
        architecture: the model's description; its config has been checked.
        attention: "sdpa" or "eager".
        checkpoint: runs a layer without keeping what its backward needs; ``None`` where the job does not ask for it.
        wants_input_grads: the embedding's result requires a gradient (``enable_input_require_grads``).
        linear: the module of a linear as it runs (quantized, adapted), by its name and the role that it is shown as.
        weight: the weight that a module uses, by the module's name; a trained copy where there is one.
        tensor: a parameter or a buffer that is not packed, by its full name; ``KeyError`` where there is none.
        linears_of: the names of a layer's linears, in order.
    """

    paper: Paper
    architecture: Architecture
    attention: str
    checkpoint: Checkpoint | None
    wants_input_grads: bool
    linear: Callable[..., Module]
    weight: Callable[[str], PaperTensor]
    tensor: Callable[[str], PaperTensor]
    linears_of: Mapping[int | None, Sequence[str]]

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

    def embedding(self) -> Embedding:
        """The input embedding."""
        return Embedding(self.paper, self.weight(self.architecture.embedding), wants_grad=self.wants_input_grads)

    def head(self) -> Module:
        """The output embedding as a plain linear."""
        return self.linear(self.architecture.head, "lm_head", Kind.LOGITS)
