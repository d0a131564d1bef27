"""One call of one of torch's functions: what decides its result, what it writes, and the same call on the host.

The tables here go by the public names of torch's functions, never by those of kernels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from qmem.phantom.knowledge import fills_its_storage, is_small, on_host, place

UNKNOWN_VALUES = ("rand", "empty", "new_empty", "bernoulli", "binomial", "multinomial", "normal", "poisson", "uniform_",
                  "exponential_", "geometric_", "cauchy_", "log_normal_", "kaiming_", "xavier_", "orthogonal_",
                  "trunc_normal_", "sparse_", "dropout", "alpha_dropout", "feature_dropout", "native_dropout",
                  "rrelu", "gumbel_softmax", "set_", "resize_")  # fmt: skip
"""How functions are called whose results do not follow from the values of their arguments."""

SHAPE_OF_FIRST = frozenset({"ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full", "new_tensor"})
"""Functions that look at their first argument's shape and type only."""

OVERWRITING = frozenset({"copy_", "fill_", "zero_"})
"""Methods after which nothing is left of what the tensor held."""

ANSWERED = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "cpu",
                      "equal", "allclose", "is_nonzero", "__repr__", "__format__"})  # fmt: skip
"""Functions that bring values to the host, and are answered from true ones."""

DATA_SHAPED = ("unique", "_return_", "repeat_interleave", "bincount", "one_hot")
"""In the names of functions, other than ``nonzero``, whose result's shape depends on values (``torch.unique`` is
called ``_return_output`` and the like)."""

HANDS_OUT_ADDRESS = frozenset({"data_ptr", "untyped_storage", "storage", "__dlpack__"})
"""With them a tensor can be written by code that torch does not see: Triton's kernels, bitsandbytes' library."""


def _histogram(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``torch.histc``, which counts whole numbers on the device only."""
    return torch.histc(values.double(), *args, **kwargs).to(values.dtype)


ON_HOST: dict[str, Callable[..., Any]] = {"histc": _histogram}
"""Functions that the host has in another form than the device."""

without_modes: Any = torch._C.DisableTorchFunction  # noqa: SLF001 - without annotations, and without a public name
"""Inside it torch's functions are themselves again."""


class Call(NamedTuple):
    """A call of one of torch's functions, with the tensors of the phantom among its arguments."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[torch.Tensor]

    def run(self) -> Any:
        """The call as it was meant."""
        return self.func(*self.args, **self.kwargs)

    def run_on_host(self) -> Any:
        """The same call over the host's view of the phantom's tensors."""
        func = torch.Tensor.clone if self.name == "cuda" else ON_HOST.get(self.name, self.func)
        args = self.args[:1] if self.name == "cuda" else self.args
        host_args = [_to_host(arg, device_first=self.name == "to" and i == 1) for i, arg in enumerate(args)]
        host_kwargs = {key: _to_host(value, device_first=key == "device") for key, value in self.kwargs.items()}
        with without_modes(), torch.no_grad():
            return func(*host_args, **({} if self.name == "cuda" else host_kwargs))

    def overwritten(self) -> list[torch.Tensor]:
        """Tensors of which nothing is left but what the call writes."""
        out = self.kwargs.get("out")
        whole = [self.args[0]] if self.name in OVERWRITING else tensors_in(out)
        return [tensor for tensor in whole if is_small(tensor) and fills_its_storage(tensor)]

    def sources(self, overwritten: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors whose values decide the result."""
        first = self.args[0] if self.name in SHAPE_OF_FIRST and self.args else None
        return [
            tensor
            for tensor in self.inputs
            if tensor is not first and not any(tensor is target for target in overwritten)
        ]

    def is_about_large_tensors(self) -> bool:
        """Whether nothing small goes in, so that nothing that comes out can be known: by far most calls of a step."""
        if not self.inputs or self.name in SHAPE_OF_FIRST:
            return False
        return not any(is_small(tensor) for tensor in self.inputs)

    def follows_from_values(self) -> bool:
        """Whether the same arguments give the same result, on the device and on the host."""
        return not self.name.startswith(UNKNOWN_VALUES)

    def brings_to_host(self) -> bool:
        """Whether its result is for Python, or a tensor of the host."""
        if self.name == "to":
            return any(str(arg) == "cpu" for arg in (*self.args[1:], self.kwargs.get("device")))
        return self.name in ANSWERED

    def is_shaped_by_values(self) -> bool:
        """Whether the shape of its result depends on values."""
        return any(part in self.name for part in DATA_SHAPED)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a value, through tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for one in value for tensor in tensors_in(one)]
    if isinstance(value, dict):
        return [tensor for one in value.values() for tensor in tensors_in(one)]
    return []


def _to_host(value: Any, *, device_first: bool = False) -> Any:
    """An argument as the host takes it: tensors over the same bytes, the host for a device."""
    if isinstance(value, torch.Tensor):
        return on_host(value.detach()) if value.is_cuda else value
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")):
        return torch.device("cpu")
    if device_first and isinstance(value, int) and not isinstance(value, bool):
        return torch.device("cpu")
    if isinstance(value, (tuple, list)) and type(value) in {tuple, list}:
        return type(value)(_to_host(one) for one in value)
    return value


def overlap(written: list[torch.Tensor], sources: list[torch.Tensor]) -> bool:
    """Whether something that was written is also read through another tensor: doing it twice would differ."""
    places = [place(tensor) for tensor in written]
    others = [tensor for tensor in sources if not any(tensor is one for one in written)]
    return any(place(tensor) in places for tensor in others if is_small(tensor))
