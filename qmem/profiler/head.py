"""Where a model's decoder ends and its head begins: there the loss begins, and in backward it ends.

It knows modules and hooks, and nothing of phases.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from qmem.architecture import Architecture
from qmem.catalogue.stacks import StackFacts


class HeadPlace(NamedTuple):
    """The modules on both sides; a fused head takes the head's weight, and its module is never called."""

    decoder: Any
    head: Any
    fused: bool

    def watch(self, see: Callable[[Any], None]) -> Any:
        """Have ``see`` called with the hidden states that the head is about to take; returns what removes that."""
        if self.fused:
            return self.decoder.register_forward_hook(lambda _, __, output: see(output[0]))
        return self.head.register_forward_pre_hook(lambda _, arguments: see(arguments[0]))


def head_of(base: Any, architecture: Architecture, facts: StackFacts) -> HeadPlace:
    """The place in a model that no adapter wraps."""
    decoder = base.get_submodule(architecture.layers_name.rpartition(".")[0])
    return HeadPlace(decoder, base.get_output_embeddings(), facts.fused_head)
