"""Paper tensors: a shape, a dtype, and a storage that enters the trace when it is made and leaves it when it dies.

CPython frees an object when its last reference goes.  So a program that is written with the scoping of the real
one (the same locals, the same closures, the same saved tensors) frees its memory in the order of the real one,
and nobody has to say when.  Owns the state of the process that runs on paper: the trace, the grad mode, the
hooks, autocast.  Knows no operation.
"""

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from qmem.catalogue.older import Older
from qmem.ledger import Kind, Label, Mark, Phase, Trace

if TYPE_CHECKING:
    from qmem.estimator.tape import Accumulator, Node

NEWEST = Older()
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


class Role(NamedTuple):
    """What memory is for by default while a part of the program runs, and who owns it."""

    kind: Kind
    owner: str


class Gpu(NamedTuple):
    """What a program's choices depend on: the compute capability and the number of multiprocessors."""

    capability: tuple[int, int]
    sm_count: int


class Region(NamedTuple):
    """From event ``event`` on, the program works for decoder layer ``layer`` (or for none)."""

    event: int
    layer: int | None


class Paper:
    """A process whose tensors have no data.

    Attributes:
        older: where the libraries' program is not the newest one.
        brief: of what repeats within a layer, only what outlives a turn is made in the turns between the ends.
        trace: what has been allocated and freed.
        regions: which layer each stretch of events belongs to.
        role, rule: label what is allocated next; ``rule`` names the operation.
        grad_enabled, saved_tensor_hooks: as torch has them; the last hook is the active one.
        thread: "main" or "autograd"; each has a cuBLAS handle of its own.
        autocast_dtype: the dtype matrix multiplications run in, where autocast is on.
        attention_mask: the mask of ones that came with the batch, where the stack passes one.
        autocast_cache: the casts kept for reuse, by the identity of what was cast, each with its layer.
    """

    def __init__(self, gpu: Gpu, older: Older = NEWEST, *, brief: bool = False) -> None:
        self.gpu = gpu
        self.older = older
        self.brief = brief
        self.trace = Trace()
        self.events = self.trace.events
        self.regions: list[Region] = []
        self.layer: int | None = None
        self.role = Role(Kind.INTERMEDIATE, "model")
        self.rule = ""
        self.grad_enabled = True
        self.thread = "main"
        self.saved_tensor_hooks: list[Callable[[PaperTensor], Any]] = []
        self.autocast_dtype: str | None = None
        self.attention_mask: PaperTensor | None = None
        self.autocast_cache: dict[int, tuple[int | None, PaperTensor]] = {}
        self.workspaces: dict[str, Storage] = {}
        self.sequence_number = 0
        self._label_index: dict[tuple[Any, ...], int] = {}

    def allocate(self, n_bytes: int, shape: tuple[int, ...], dtype: str, kind: Kind | None) -> int:
        """Enter an allocation in the trace; its handle."""
        kind_, owner = self.role
        key = (kind or kind_, owner, self.rule, shape, dtype)
        label = self._label_index.get(key)
        if label is None:
            label = self._new_label(key)
        trace = self.trace
        handle = len(trace.sizes)
        trace.sizes.append(n_bytes)
        trace.labels.append(label)
        self.events.append(handle)
        return handle

    def _new_label(self, key: tuple[Any, ...]) -> int:
        kind, owner, rule, shape, dtype = key
        size = " × ".join(map(str, (*shape, f"{DTYPE_BYTES[dtype]} B")))
        table = self.trace.label_table
        table.append(Label(kind, owner, f"{rule}: {size} ({dtype})" if rule else f"{size} ({dtype})"))
        self._label_index[key] = len(table) - 1
        return len(table) - 1

    def relabel(self, tensor: "PaperTensor", kind: Kind, owner: str | None = None) -> None:
        """The memory of ``tensor`` turns out to be something more particular: a checkpoint, a gradient."""
        handle = tensor.storage.handle
        if handle is None:
            return
        old = self.trace.label_table[self.trace.labels[handle]]
        key = ("relabelled", old, kind, owner)
        label = self._label_index.get(key)
        if label is None:
            self.trace.label_table.append(Label(kind, owner or old.owner, old.because))
            label = self._label_index[key] = len(self.trace.label_table) - 1
        self.trace.labels[handle] = label

    def begin_phase(self, phase: Phase, step: int = 0, micro_step: int = 1, *, empties_cache: bool = False) -> None:
        """A phase begins here; ``empties_cache`` where the program calls ``torch.cuda.empty_cache()``."""
        self.layer = None
        self.regions.append(Region(len(self.events), None))
        self.trace.marks.append(Mark(len(self.events), step, micro_step, phase, empties_cache))

    def enter_layer(self, layer: int | None) -> None:
        """What follows belongs to decoder layer ``layer`` (``None``: to no layer)."""
        if layer != self.layer:
            self.layer = layer
            self.regions.append(Region(len(self.events), layer))

    def end_autocast(self) -> None:
        """Autocast ends: its cache goes, cast by cast."""
        self.autocast_dtype = None
        while self.autocast_cache:
            key = next(iter(self.autocast_cache))
            self.enter_layer(self.autocast_cache[key][0])
            del self.autocast_cache[key]
        self.enter_layer(None)

    def finish(self) -> Trace:
        """The trace; what is freed from now on, when Python takes the program down, is no longer part of it."""
        self.events = []
        return self.trace


class Storage:
    """Memory that tensors share.  It is freed when the last of them goes."""

    __slots__ = ("handle", "n_bytes", "paper")

    def __init__(
        self, paper: Paper, n_bytes: int, shape: tuple[int, ...], dtype: str, kind: Kind | None = None
    ) -> None:
        self.paper = paper
        self.n_bytes = n_bytes
        # A tensor without elements never reaches the allocator.
        self.handle = paper.allocate(n_bytes, shape, dtype, kind) if n_bytes else None

    def __del__(self) -> None:
        handle = self.handle
        if handle is not None:
            self.paper.events.append(~handle)


class PaperTensor:
    """A tensor without data.

    Attributes:
        shape, dtype, storage: as torch has them; ``paper`` is the process they live in.
        node: the operation that made it (``grad_fn``), if a gradient can flow back.
        requires_grad: whether a gradient flows to or through it.
        base: the tensor it is a view of.
        swapped: dimensions 1 and 2 are swapped in memory, so a reshape that merges them must copy.
        columns: of ``[b, heads, s, d]`` the columns of each matrix lie together, so that heads and ``d`` merge.
        grad, accumulator: as torch has them on leaves.
        name: the qualified name of a parameter.
    """

    __slots__ = (
        "_trainable", "accumulator", "base", "columns", "dtype", "grad", "name", "node", "paper", "requires_grad",
        "shape", "storage", "swapped",
    )  # fmt: skip

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        storage: Storage,
        node: "Node | None" = None,
        *,
        trainable: bool = False,
        base: "PaperTensor | None" = None,
        swapped: bool = False,
        columns: bool = False,
        name: str = "",
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.storage = storage
        self.paper = storage.paper
        self.node = node
        self._trainable = trainable
        self.requires_grad = trainable or node is not None
        self.base = base
        self.swapped = swapped
        self.columns = columns
        self.name = name
        self.grad: PaperTensor | None = None
        self.accumulator: Callable[[], Accumulator | None] | None = None

    @property
    def trainable(self) -> bool:
        """Whether it is a leaf that requires a gradient."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = value
        self.requires_grad = value or self.node is not None

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    def detached(self) -> "PaperTensor":
        """The same storage without its history (``detach()``)."""
        return PaperTensor(self.shape, self.dtype, self.storage, swapped=self.swapped)


def empty(
    paper: Paper,
    shape: tuple[int, ...],
    dtype: str,
    node: "Node | None" = None,
    *,
    kind: Kind | None = None,
    swapped: bool = False,
    columns: bool = False,
) -> PaperTensor:
    """A new tensor of ``prod(shape)`` elements with a storage of its own."""
    storage = Storage(paper, prod(shape) * DTYPE_BYTES[dtype], shape, dtype, kind)
    return PaperTensor(shape, dtype, storage, node, swapped=swapped, columns=columns)


def parameter(
    paper: Paper, name: str, shape: tuple[int, ...], dtype: str, kind: Kind, *, trainable: bool = False
) -> PaperTensor:
    """A named tensor of the model: a weight, a buffer, an adapter, an optimizer's state."""
    outer, paper.role = paper.role, Role(kind, name)
    paper.rule = ""
    tensor = empty(paper, shape, dtype)
    tensor.trainable = trainable
    tensor.name = name
    paper.role = outer
    return tensor


class Module:
    """A part of the model.  Its memory is labelled with its role while it runs.

    ``__call__`` holds its inputs until ``forward`` returns, as ``torch.nn.Module._call_impl`` does.
    """

    role: Role
    paper: Paper

    def __init__(self, paper: Paper, role: Role) -> None:
        self.paper = paper
        self.role = role

    def __call__(self, *inputs: Any) -> Any:
        """Run ``forward`` under this module's role."""
        paper = self.paper
        outer, paper.role = paper.role, self.role
        try:
            return self.forward(*inputs)
        finally:
            paper.role = outer

    def forward(self, *inputs: Any) -> Any:
        """The module's program."""
        raise NotImplementedError
