"""One optimizer step on paper: clipping, the state that appears in the first step, and the temporaries.

What state each parameter holds, and where, stands in ``storage.py``.  Sources: torch 2.14.1
``nn/utils/clip_grad.py``, ``optim/adamw.py`` (``_multi_tensor_adamw``), ``optim/sgd.py``; bitsandbytes 0.50.2
``optim/optimizer.py``; transformers 5.23.0 ``optimization.py`` (``Adafactor``).
"""

import re

from qmem.estimator.adafactor import Adafactor
from qmem.estimator.model import Exempt, layer_of
from qmem.estimator.paper import Paper, PaperTensor, Role, empty, parameter
from qmem.estimator.storage import Piece, optimizer_shared, optimizer_state
from qmem.job.job import Optimizer
from qmem.ledger import Kind

_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names of parameters that the Trainer leaves without weight decay."""

_UNDECAYED_BEFORE = re.compile(r"bias")
"""The same before it knew norms by name."""

_TEMPORARY = Role(Kind.OPTIMIZER_TEMPORARY, "optimizer step")


class PaperOptimizer:
    """The optimizer of a job and what it holds.

    Attributes:
        trainable: the parameters it gets; ``n_trained`` counts them for the whole model, if this one is cut.
        exempt: what transformers' Trainer treats in another way, where it makes the optimizer; ``None`` in a bare loop.
        state: its tensors on the GPU; what is paged lies outside torch's allocator and so outside the trace.
        norm: the gradient norm of the last step, which the Trainer keeps to log it.
    """

    def __init__(
        self, paper: Paper, name: Optimizer, trainable: list[PaperTensor], n_trained: int, exempt: Exempt | None
    ) -> None:
        self.paper, self.name, self.trainable, self.n_trained = paper, name, trainable, n_trained
        self.exempt = exempt
        self.state: list[PaperTensor] = []
        self.norm: PaperTensor | None = None
        self.adafactor = Adafactor(paper) if name == "adafactor" else None

    def step(self, *, first: bool) -> None:
        """``optimizer.step()``: group by group, state made where there is none yet."""
        if self.adafactor is not None:
            self._step_adafactor(self.adafactor)
            return
        if first:
            for piece in optimizer_shared(self.name):
                self._keep("optimizer", piece)
        for group in self._groups():
            if first:
                for tensor in group:
                    self.paper.enter_layer(layer_of(tensor.name))
                    self._make_state(tensor)
                self.paper.enter_layer(None)
            if self.name == "adamw_torch":
                self._take_roots(group)

    def _step_adafactor(self, adafactor: Adafactor) -> None:
        """Parameter after parameter, through all groups."""
        paper, outer = self.paper, self.paper.role
        paper.role, paper.rule = _TEMPORARY, "Adafactor's update"
        adafactor.step([tensor for group in self._groups() for tensor in group])
        paper.enter_layer(None)
        paper.role = outer

    def _take_roots(self, group: list[PaperTensor]) -> None:
        """``_multi_tensor_adamw`` takes ``sqrt(exp_avg_sq)`` of all at once; nothing else makes temporaries.

        The roots of one dtype are a local, and live on while those of the next are made.
        """
        paper, outer = self.paper, self.paper.role
        paper.role, paper.rule = _TEMPORARY, "sqrt(exp_avg_sq)"
        ordered = [tensor for same in _by_dtype(group) for tensor in same]
        roots: list[PaperTensor | None] = []
        for tensor in ordered:
            paper.enter_layer(layer_of(tensor.name))
            roots.append(empty(paper, tensor.shape, tensor.dtype))
        self._drop(ordered, roots)
        paper.role = outer

    def _groups(self) -> list[list[PaperTensor]]:
        """The Trainer's parameter groups: weight decay for all but norms and biases, which it knows by class or name.

        Source: transformers 5.23.0 ``trainer.py`` (``get_decay_parameter_names``).
        """
        if self.exempt is None:
            return [self.trainable]
        undecayed = _UNDECAYED_BEFORE if self.paper.older.decays_most_norms else _UNDECAYED
        groups: tuple[list[PaperTensor], list[PaperTensor]] = ([], [])
        for tensor in self.trainable:
            name = tensor.name
            groups[name in self.exempt.norms or undecayed.search(name.lower()) is not None].append(tensor)
        return list(groups)

    def _drop(self, group: list[PaperTensor], tensors: list[PaperTensor | None]) -> None:
        for index, tensor in enumerate(group):
            self.paper.enter_layer(layer_of(tensor.name))
            tensors[index] = None
        self.paper.enter_layer(None)

    def _make_state(self, tensor: PaperTensor) -> None:
        exempt = self.exempt is not None and tensor.name in self.exempt.embeddings
        block = self.paper.older.state_block
        for piece in optimizer_state(self.name, tensor.shape, tensor.dtype, keeps_32bit=exempt, state_block=block):
            self._keep(tensor.name, piece)

    def _keep(self, owner: str, piece: Piece) -> None:
        if piece.space == "gpu":
            name = f"{owner}.{piece.name}"
            self.state.append(parameter(self.paper, name, piece.shape, piece.dtype, Kind.OPTIMIZER_STATE))

    def clip_gradients(self) -> None:
        """``clip_grad_norm_``: one norm a gradient, dtype by dtype, and the norm of these.

        Gradients are scaled in place.  The Trainer lets go of the last step's norm first.
        """
        paper, outer = self.paper, self.paper.role
        if not paper.older.keeps_norm:
            self.norm = None
        paper.role, paper.rule = _TEMPORARY, "gradient norm"
        norms: list[PaperTensor | None] = []
        groups = _by_dtype(self.trainable)
        for group in groups:
            norms += self._norms(group)
        dtype = self.trainable[0].dtype if len(groups) == 1 else "fp32"
        stacked = empty(paper, (self.n_trained,), dtype)
        total = empty(paper, (), dtype)
        del stacked
        self._drop([tensor for group in groups for tensor in group], norms)
        self._clip_coefficient(total)
        self.norm = total
        paper.role = outer

    def _norms(self, group: list[PaperTensor]) -> list[PaperTensor]:
        """``_foreach_norm``: a table of partial norms, a row for each gradient, a column for 65,536 elements.

        Source: torch 2.14.1 ``ForeachReduceOp.cu`` (``foreach_tensor_norm_cuda``).
        """
        paper = self.paper
        in_layers = any(layer_of(tensor.name) is not None for tensor in group)
        n_tensors = len(group) + (self.n_trained - len(self.trainable) if in_layers else 0)
        chunks = max(-(-tensor.numel // 65536) for tensor in group)
        partial = empty(paper, (n_tensors, chunks), "fp32")
        norms = []
        for tensor in group:
            paper.enter_layer(layer_of(tensor.name))
            norms.append(empty(paper, (), tensor.dtype))
        paper.enter_layer(None)
        del partial
        return norms

    def _clip_coefficient(self, total: PaperTensor) -> None:
        """``max_norm / (total_norm + 1e-6)``, clamped: four scalars that go again."""
        shifted = empty(self.paper, (), total.dtype)
        reciprocal = empty(self.paper, (), total.dtype)
        coefficient = empty(self.paper, (), total.dtype)
        del reciprocal, shifted
        clamped = empty(self.paper, (), total.dtype)
        del clamped, coefficient

    def zero_grad(self) -> None:
        """``zero_grad(set_to_none=True)``."""
        for tensor in self.trainable:
            self.paper.enter_layer(layer_of(tensor.name))
            tensor.grad = None
        self.paper.enter_layer(None)


def _by_dtype(tensors: list[PaperTensor]) -> list[list[PaperTensor]]:
    """The groups of torch's foreach functions (``group_tensors_by_device_and_dtype``): the dtype seen last is first."""
    groups: dict[str, list[PaperTensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())[::-1]
