"""Names of the tensors that live on: as the estimate calls them, whatever wrappers peft puts around a module.

It knows models, optimizers and bitsandbytes' classes by their attributes only, and nothing of bytes over time.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from qmem.ledger import Kind
from qmem.ledger.series import series_name
from qmem.profiler.protocol import Holding

MAX_INTEGER = (1 << 63) - 1
_PEFT_PREFIX = "base_model.model."
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


class Named(NamedTuple):
    """A tensor with a name: what it is, its bytes, where they lie, and whether CUDA manages them."""

    owner: str
    kind: Kind
    n_bytes: int
    address: int
    managed: bool
    because: str


def name_tensor(owner: str, kind: Kind, tensor: Any) -> Named:
    """The name tag of a tensor; the bytes are those of its own elements."""
    address, managed = tensor.untyped_storage().data_ptr(), bool(getattr(tensor, "is_paged", False))
    because = size_in_words(tuple(tensor.shape), str(tensor.dtype), tensor.element_size())
    return Named(owner, kind, tensor.nbytes, address, managed, because)


@cache
def size_in_words(shape: tuple[int, ...], dtype: str, element_bytes: int) -> str:
    """``5120 x 8 x 4 B (fp32)``, with the sign of multiplication."""
    short = dtype.removeprefix("torch.")
    factors = [*map(str, shape), f"{element_bytes} B"]
    return f"{' × '.join(factors)} ({_SHORT.get(short, short)})"


def transformers_name(name: str) -> str:
    """The name in the transformers model: without peft's prefix and ``base_layer``; an adapter keeps its own."""
    if ".lora_" in name or not name.startswith(_PEFT_PREFIX):
        return name
    return ".".join(word for word in name.removeprefix(_PEFT_PREFIX).split(".") if word != "base_layer")


def model_tensors(model: Any) -> Iterator[Named]:
    """Parameters with what bitsandbytes keeps beside them, their gradients, and buffers."""
    has_8bit = False
    for raw, parameter in model.named_parameters():
        if not parameter.is_cuda:
            continue
        name = transformers_name(raw)
        yield name_tensor(name, _kind_of(raw, parameter), parameter)
        yield from _quantization_state(name, parameter)
        has_8bit = has_8bit or type(parameter).__name__ == "Int8Params"
        if parameter.grad is not None:
            yield name_tensor(f"{name}.grad", Kind.GRADIENT, parameter.grad)
    for raw, buffer in model.named_buffers():
        if buffer.is_cuda:
            yield name_tensor(transformers_name(raw), Kind.MODULE_BUFFER, buffer)
    yield from _shared_tables()
    if has_8bit:
        yield from _scales_taken_over(model)


def _kind_of(name: str, parameter: Any) -> Kind:
    if ".lora_" in name or ".modules_to_save." in name:
        return Kind.ADAPTER
    if type(parameter).__name__ in ("Params4bit", "Int8Params"):
        return Kind.BASE_WEIGHT
    return Kind.WEIGHT_32BIT if parameter.element_size() == 4 else Kind.WEIGHT_16BIT  # noqa: PLR2004 - fp32


def _quantization_state(name: str, parameter: Any) -> Iterator[Named]:
    """The pieces of a ``QuantState``, under the names of a quantized checkpoint; ``SCB`` of an 8-bit weight."""
    state = getattr(parameter, "quant_state", None)
    pieces: list[tuple[str, Any]] = [("SCB", getattr(parameter, "SCB", None))]
    if state is not None:
        pieces += [("absmax", state.absmax), ("quant_map", state.code), ("offset", state.offset)]
        nested = state.state2
        pieces += [("nested_absmax", nested.absmax), ("nested_quant_map", nested.code)] if nested is not None else []
    for piece, tensor in pieces:
        if tensor is not None:
            yield name_tensor(f"{name}.{piece}", Kind.QUANT_STATE, tensor)


def _shared_tables() -> Iterator[Named]:
    """The 8-bit code that bitsandbytes caches for the process."""
    import sys  # noqa: PLC0415

    functional = sys.modules.get("bitsandbytes.functional")
    for name, table in getattr(functional, "name2qmap", {}).items():
        if table.is_cuda:
            yield name_tensor(f"bitsandbytes.{name}", Kind.QUANT_STATE, table)


def _scales_taken_over(model: Any) -> Iterator[Named]:
    """The scales of 8-bit weights: a linear takes them from its weight at its first forward."""
    for raw, module in model.named_modules():
        scales = getattr(getattr(module, "state", None), "SCB", None)
        if scales is not None and getattr(module.weight, "SCB", None) is None:
            yield name_tensor(transformers_name(f"{raw}.weight.SCB"), Kind.QUANT_STATE, scales)


def optimizer_tensors(model: Any, optimizer: Any) -> Iterator[Named]:
    """The state of every trained parameter; tables that all share stand once, as the optimizer's."""
    names = {id(parameter): transformers_name(name) for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, tensor in state.items():
            if getattr(tensor, "is_cuda", False) or getattr(tensor, "is_paged", False):
                of = names.get(id(parameter), "a parameter of no watched model")
                owner = f"optimizer.{key}" if key.startswith("qmap") else f"{of}.{key}"
                yield name_tensor(owner, Kind.OPTIMIZER_STATE, tensor)


_Key = tuple[str, Kind, bool, str, int]
"""What the members of a series share: owner, kind, whether they are managed, formula, and bytes of each."""


class _Series:
    """Tensors of one owner over the layers, as they add up."""

    __slots__ = ("addresses", "block_bytes", "count", "n_bytes")

    def __init__(self) -> None:
        self.count = self.n_bytes = self.block_bytes = self.addresses = 0


def fold(tensors: Iterable[tuple[Named, int]], n_layers: int) -> tuple[Holding, ...]:
    """Holdings of named tensors with the bytes of their blocks; those that every layer has become one series.

    A block of 0 bytes says that the tensor lies outside the allocator's memory.
    """
    series: dict[_Key, _Series] = {}
    for named, block_bytes in tensors:
        key = (series_name(named.owner), named.kind, named.managed, named.because, named.n_bytes)
        members = series.setdefault(key, _Series())
        members.count += 1
        members.n_bytes += named.n_bytes
        members.block_bytes += block_bytes
        members.addresses += named.address
    return tuple(_holding(key, members, n_layers) for key, members in series.items())


def _holding(key: _Key, members: _Series, n_layers: int) -> Holding:
    owner, kind, managed, because, _ = key
    if members.count == n_layers:
        owner = owner.replace(".*.", f".{{0..{n_layers - 1}}}.")
    return Holding(
        owner, kind, "managed" if managed else "gpu", members.n_bytes, members.count, because,
        members.block_bytes or None, members.addresses & MAX_INTEGER,
    )  # fmt: skip
