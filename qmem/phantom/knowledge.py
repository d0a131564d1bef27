"""Which tensors on the phantom hold true values, and those values.

The phantom's memory is memory of the host, so a known tensor's values simply lie at its address: a copy to the host
finds them there, whoever asks.  This module remembers which storages are known, by the storage and not by the tensor,
so that views, aliases and autograd's saved tensors are known with it.  It does not know why anyone asks.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

WHOLE_NUMBERS = frozenset({torch.bool, torch.int16, torch.int32, torch.int64})
"""Types of ids, masks, labels, positions and counts: what decides shapes."""

HOST_VALUES = "host values"
"""Why most is known: it was made on the host, or follows from what was."""

MOST_WHOLE_NUMBERS = 2**22
"""Elements of the largest tensor of whole numbers that is computed: 4 x 8192 tokens routed to 128 experts."""

MOST_OTHERS = 64
"""Elements of the largest other tensor: losses, norms, scales.  Weights and 8-bit states stay unknown."""


_weak_reference: Any = StorageWeakRef  # without annotations in torch
_is_wrapped: Any = torch._C._functorch.is_functorch_wrapped_tensor  # noqa: SLF001 - torch has no public name for it


class Known(NamedTuple):
    """What is known of a storage.

    Attributes:
        storage: alive as long as the knowledge means anything.
        address: where its bytes lie.
        n_bytes: how many.
        version: the tensor's version counter then; autograd and C++ raise it when they write in place.
        why: how its values came about: ``host values``, a declaration, an assumption.
        assumed: whether an assumption had a part in them.
    """

    storage: Any
    address: int
    n_bytes: int
    version: int
    why: str
    assumed: bool


class Knowledge:
    """The known storages.  One that is written to by anything unknown has to be forgotten by whoever sees it."""

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}
        self._purge_at = 1024

    def of(self, tensor: torch.Tensor) -> Known | None:
        """What is known of the tensor, through its storage; nothing if it was written to or moved since."""
        known = self._known.get(place(tensor))
        if known is None or known.version != version(tensor):
            return None
        return known if known.address == tensor.untyped_storage().data_ptr() else None

    def at(self, address: int, n_bytes: int) -> Known | None:
        """What is known of ``n_bytes`` at an address of the phantom's memory."""
        for known in list(self._known.values()):
            inside = known.address <= address and address + n_bytes <= known.address + known.n_bytes
            if inside and not known.storage.expired():
                return known
        return None

    def learn(self, tensor: torch.Tensor, why: str, *, assumed: bool) -> None:
        """The tensor, which is its whole storage, now holds true values."""
        storage = tensor.untyped_storage()
        if len(self._known) >= self._purge_at:
            self._purge()
        alive = _weak_reference(storage)
        self._known[place(tensor)] = Known(alive, storage.data_ptr(), storage.nbytes(), version(tensor), why, assumed)

    def forget(self, tensor: torch.Tensor) -> None:
        """Something unknown was written into the tensor's storage, or may be."""
        self._known.pop(place(tensor), None)

    def _purge(self) -> None:
        self._known = {key: known for key, known in self._known.items() if not known.storage.expired()}
        self._purge_at = 1024 + 2 * len(self._known)


def place(tensor: torch.Tensor) -> int:
    """The identity of a tensor's storage, as long as it lives or a weak reference to it does."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - torch has no public name for it


def version(tensor: torch.Tensor) -> int:
    """How often a tensor and its views were written to in place; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001 - documented for saved tensors


def is_small(tensor: torch.Tensor) -> bool:
    """Whether a tensor on the phantom is of the kind whose values are computed.

    Inside ``torch.vmap`` and its like tensors are wrapped and have no storage of their own: those are not followed.
    """
    if not tensor.is_cuda or tensor.layout is not torch.strided or _is_wrapped(tensor):
        return False
    return tensor.numel() <= (MOST_WHOLE_NUMBERS if tensor.dtype in WHOLE_NUMBERS else MOST_OTHERS)


def fills_its_storage(tensor: torch.Tensor) -> bool:
    """Whether writing the tensor writes all of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the host over the very bytes of one on the phantom: what is written to it, the phantom holds."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    raw = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    return torch.frombuffer(raw, dtype=tensor.dtype).as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
