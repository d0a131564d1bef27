"""Balanced routing of experts on a phantom, where no router computes where its tokens go.

Every mixture of transformers 5 calls its experts with the indices that its router chose (``use_experts_implementation``
of ``transformers/integrations/moe.py``).  There they are given values: tokens take the experts in turn.  It knows the
experts' modules by how they are called, and nothing of routers and of what is computed from the indices.
"""

import inspect
from collections.abc import Iterator
from typing import Any

INDEX_NAMES = ("top_k_index", "router_indices")
"""What the experts of transformers 5.23.0 call the indices, in all 65 classes that take them."""


def assume_balanced_routing(model: Any, verdict: Any) -> None:
    """From now on the readback guard's ``verdict`` takes the indices that experts are called with for balanced ones.

    Every read that rests on them makes the result assumed.  Indices that are too many to be followed stay unknown:
    whatever reads them taints.
    """
    for module, position, name in _experts(model):
        module.register_forward_pre_hook(_assume_in_turn(verdict, position, name), with_kwargs=True)


def _experts(model: Any) -> Iterator[tuple[Any, int, str]]:
    """Modules that are called with indices of experts, and where among the arguments these are."""
    for module in model.modules():
        if hasattr(module, "num_experts"):
            names = list(inspect.signature(type(module).forward).parameters)[1:]
            yield from ((module, names.index(name), name) for name in INDEX_NAMES if name in names)


def _assume_in_turn(verdict: Any, position: int, name: str) -> Any:
    def assume(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        indices = keywords[name] if name in keywords else arguments[position]
        if verdict.can_follow(indices):
            verdict.assume(indices, experts_in_turn(indices, module.num_experts), _why(module, indices))

    return assume


def experts_in_turn(indices: Any, n_experts: int) -> Any:
    """Values for indices of ``tokens × chosen``: 0, 1, 2, ... and around; no expert has two tokens more than another.

    A token's experts differ from each other, as those that a router chooses do.
    """
    import torch  # noqa: PLC0415

    return torch.arange(indices.numel()).remainder_(n_experts).view(indices.shape)


def _why(module: Any, indices: Any) -> str:
    chosen, n_experts = indices.shape[-1], module.num_experts
    return (
        f"balanced routing: tokens take the {n_experts} experts of a layer in turn, {chosen} each, so that all experts "
        "have equally many; a trained router is uneven"
    )
