"""What can be said of a model that somebody else built: its layers, its head, and what wraps it."""

from typing import Any, NamedTuple

from qmem.profiler.head import HeadPlace

WRAPPERS = ("module", "_orig_mod")
"""Where DistributedDataParallel and ``torch.compile`` keep the model that they wrap."""


class Outline(NamedTuple):
    """The decoder layers of a transformers model, and the head after them; of any other model neither."""

    layers: list[Any]
    head: HeadPlace | None


def unwrapped(model: Any) -> Any:
    """The model whose names count."""
    for name in WRAPPERS:
        if type(model).__name__ in ("DistributedDataParallel", "OptimizedModule") and hasattr(model, name):
            return unwrapped(getattr(model, name))
    return model


def devices_of(model: Any) -> set[int]:
    """The numbers of the CUDA devices that its parameters lie on."""
    return {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}


def outline(model: Any) -> Outline:
    """Find the decoder by transformers' own accessors; its longest list of modules are the layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if decoder is None or decoder is base or head is None:
        return Outline([], None)
    lists = [child for child in decoder.children() if type(child).__name__ == "ModuleList"]
    return Outline(list(max(lists, key=len, default=())), HeadPlace(decoder, head, fused=True))
