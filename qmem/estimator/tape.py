"""The tape and the engine: what autograd saves, in which order the backward pass runs, what it adds and casts.

Follows torch 2.14.1 ``torch/csrc/autograd/engine.cpp`` (``evaluate_function``, ``validate_outputs``),
``input_buffer.cpp`` (``accumulate``) and ``functions/accumulate_grad.h``.  Checked event by event against
recorded steps (``tests/estimator/golden``).
"""

import heapq
import sys
import weakref
from collections.abc import Callable, Sequence
from itertools import dropwhile
from math import prod
from typing import Any

from qmem.estimator.paper import Paper, PaperTensor, empty
from qmem.estimator.reductions import sum_columns
from qmem.ledger import Kind

Gradients = tuple["PaperTensor | None", ...]
Backward = Callable[..., Gradients]
Edge = tuple["Node | None", "tuple[int, ...]", str]

_NO_EDGE: Edge = (None, (), "")
_AFTER_ALL = sys.maxsize


class Node:
    """One backward operation.

    Attributes:
        sequence: when it was recorded; the engine runs the youngest ready node first.
        edges: for each input the node its gradient goes to, with the input's shape and dtype.
        saved: what the hooks made of the tensors saved for backward.
        backward: ``backward(grad, needs, *saved)`` gives one gradient for each input.
        graph: of the root of a graph that has been run, its other operations, the last to be run first.  They live
            as long as the root does.
    """

    __slots__ = ("__weakref__", "backward", "edges", "graph", "layer", "name", "role", "saved", "sequence")

    def __init__(self, paper: Paper, name: str, backward: Backward) -> None:
        self.name = name
        self.backward = backward
        self.role = paper.role
        self.layer = paper.layer
        self.saved: list[Any] = []
        self.edges: list[Edge] = []
        self.graph: list[Node] = []
        paper.sequence_number += 1
        self.sequence = paper.sequence_number

    def __del__(self) -> None:
        # What is saved goes before the edges and what they lead to, as C++ destroys members before those of the base.
        self.saved = []


class Accumulator(Node):
    """``AccumulateGrad`` of a leaf: runs as soon as its gradient is there."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: PaperTensor) -> None:
        self.leaf = leaf
        self.sequence = _AFTER_ALL
        self.edges = []
        self.saved = []
        self.name = "AccumulateGrad"
        self.layer = None


class Slot(Node):
    """One of several results of an operation: gradients that reach it are added up here, apart from the others'."""

    __slots__ = ("index",)

    def __init__(self, operation: Node, index: int) -> None:
        self.index = index
        self.edges = [(operation, (), "")]
        self.saved = []


def record(
    paper: Paper,
    name: str,
    inputs: Sequence[PaperTensor | None],
    backward: Backward,
    saved: Sequence[PaperTensor | None] = (),
) -> Node | None:
    """Make the node of an operation before the operation runs, as generated autograd code does.

    Saved inputs are packed here; an operation that saves its output appends it with ``save_output``.
    Returns ``None`` where no gradient is needed; then nothing is saved.
    """
    paper.rule = name
    if not paper.grad_enabled or not any(t is not None and t.requires_grad for t in inputs):
        return None
    node = Node(paper, name, backward)
    node.edges = [_edge(tensor) for tensor in inputs]
    node.saved = [None if tensor is None else _pack(paper, tensor) for tensor in saved]
    return node


def slots(node: Node | None, n: int) -> list[Slot | None]:
    """The nodes of ``n`` results of one operation, whose backward gets the gradients that came, by index."""
    return [None if node is None else Slot(node, index) for index in range(n)]


def save_output(node: Node | None, *outputs: PaperTensor) -> None:
    """Save outputs of an operation: aliases of their storage, since a node must not hold the tensor it made."""
    if node is not None:
        node.saved += [_pack(tensor.paper, tensor.detached()) for tensor in outputs]


def _edge(tensor: PaperTensor | None) -> Edge:
    if tensor is None or not tensor.requires_grad:
        return _NO_EDGE
    if not tensor.trainable:
        return (tensor.node, tensor.shape, tensor.dtype)
    # The graph holds a leaf's AccumulateGrad; the leaf knows it only weakly.
    accumulator = tensor.accumulator() if tensor.accumulator else None
    if accumulator is None:
        accumulator = Accumulator(tensor)
        tensor.accumulator = weakref.ref(accumulator)
    return (accumulator, tensor.shape, tensor.dtype)


def _pack(paper: Paper, tensor: PaperTensor) -> Any:
    hooks = paper.saved_tensor_hooks
    return hooks[-1](tensor) if hooks else tensor.detached()


def run_backward(loss: PaperTensor) -> None:
    """``loss.backward()``: every gradient, in the engine's order, on the autograd thread."""
    paper, root = loss.paper, loss.node
    if root is None:
        return
    outer = (paper.thread, paper.role)
    paper.thread = "autograd"
    paper.rule = "gradient of the loss"
    first = empty(paper, (), loss.dtype)  # held by the caller until backward returns
    run_engine(root, first.detached())
    paper.thread, paper.role = outer


def run_engine(root: Node, grad: PaperTensor) -> None:
    """Run the graph behind ``root``, from its gradient, on the thread that asks; a backward may do so within one."""
    paper = grad.paper
    outer, paper.grad_enabled = paper.grad_enabled, False
    _Engine(paper, root, grad).run()
    paper.grad_enabled = outer


def run_engine_from_all(results: Sequence[PaperTensor], grads: Sequence[PaperTensor]) -> None:
    """The same from several results of a function, which get their gradients from one root (``GraphRoot``)."""
    first = results[0].node
    assert first is not None, "a result that requires a gradient"
    if len(results) == 1:
        run_engine(first, grads[0])
        return
    root = Node(results[0].paper, "graph root", lambda _g, _: tuple(grads))
    root.edges = [_edge(result) for result in results]
    run_engine(root, grads[0])
    first.graph, root.graph = [node for node in root.graph if node is not first], []


class _Engine:
    """Ready nodes by youngest sequence number, and the gradients that wait for each node."""

    def __init__(self, paper: Paper, root: Node, first: PaperTensor) -> None:
        self.paper = paper
        self.waiting = _count_dependencies(root)
        self.tie = 0
        self.ready = [(-root.sequence, 0, root)]
        self.buffers: dict[Node, Any] = {root: first}

    def run(self) -> None:
        evaluated = []
        while self.ready:
            node = heapq.heappop(self.ready)[2]
            if isinstance(node, Accumulator):
                self._accumulate(node)
            else:
                self._evaluate(node)
            evaluated.append(node)
        # A chain of thousands of edges would not be freed in order.
        root, *others = evaluated
        root.graph = others[::-1]

    def _accumulate(self, node: Accumulator) -> None:
        """The first gradient is kept as it is, a later one is added in place (``accumulate_grad.h``)."""
        grad, leaf = self.buffers.pop(node), node.leaf
        if leaf.grad is None:
            leaf.grad = grad.detached()
            if leaf.name:
                self.paper.relabel(grad, Kind.GRADIENT, f"{leaf.name}.grad")

    def _evaluate(self, node: Node) -> None:
        paper = self.paper
        if node.layer != paper.layer:
            paper.enter_layer(node.layer)
        paper.role = node.role
        outputs = self._call(node, self.buffers.pop(node))
        for index, (target, _, _) in enumerate(node.edges):
            output, outputs[index] = outputs[index], None
            if target is not None:
                self._hand_over(target, output)
            output = None
        node.edges = []

    def _call(self, node: Node, grad: Any) -> list[PaperTensor | None]:
        """Unpack what was saved, run the node, then fit each gradient to the shape and dtype of its input.

        Saved tensors die with the node's locals: before the gradients are handed on.
        """
        needs = [target is not None for target, _, _ in node.edges]
        recomputed = any(callable(packed) for packed in node.saved)
        saved = [packed() if callable(packed) else packed for packed in node.saved]
        self.paper.rule = f"{node.name} backward"
        outputs = list(node.backward(grad, needs, *saved))
        if recomputed:
            # A list is cleared from its end, but here the first of what was saved is the first to go.
            saved.reverse()
            saved, node.saved = [], []
        for index, (target, shape, dtype) in enumerate(node.edges):
            outputs[index] = None if target is None else _fitted(outputs[index], shape, dtype)
        del grad
        node.saved = []
        return outputs

    def _hand_over(self, target: Node, grad: PaperTensor | None) -> None:
        if grad is not None:
            if target in self.buffers:
                self._add(target)
            else:
                self.buffers[target] = grad
        self.waiting[target] -= 1
        if self.waiting[target] == 0 and target in self.buffers:
            if isinstance(target, Slot):
                self._gather(target)
            else:
                self.tie += 1
                heapq.heappush(self.ready, (-target.sequence, self.tie, target))

    def _gather(self, slot: Slot) -> None:
        """Lay a result's gradient beside those of the operation's other results."""
        ((operation, _, _),) = slot.edges
        assert operation is not None, "a slot belongs to an operation"
        self.buffers.setdefault(operation, {})[slot.index] = self.buffers.pop(slot)
        self._hand_over(operation, None)

    def _add(self, target: Node) -> None:
        """Gradients that meet are added, in place only if the first one is nobody else's and no view."""
        first = self.buffers.pop(target)
        # Two references: the local name and the argument of getrefcount.
        own = sys.getrefcount(first) == 2 and sys.getrefcount(first.storage) == 2 and first.base is None
        self.paper.rule = "sum of gradients"
        self.buffers[target] = first if own else empty(self.paper, first.shape, first.dtype, swapped=first.swapped)


def _fitted(grad: PaperTensor | None, shape: tuple[int, ...], dtype: str) -> PaperTensor | None:
    """``validate_outputs``: a gradient is reduced to its input's shape and cast to its dtype."""
    if grad is None:
        return None
    if prod(grad.shape) != prod(shape):
        grad = _summed(grad, shape)
    if grad.dtype != dtype:
        grad = empty(grad.paper, shape, dtype, swapped=grad.swapped)
    return grad


def _summed(grad: PaperTensor, shape: tuple[int, ...]) -> PaperTensor:
    """``sum_to``: the result, then what the kernel needs where blocks share a column (``reductions.py``).

    A gradient is summed over its rows (to a weight's or a bias's shape), or over a few expanded elements, for
    which no result has enough inputs to be shared.  Fewer dimensions than the gradient's make the result a view.
    """
    summed = empty(grad.paper, shape, grad.dtype)
    trailing = tuple(dropwhile(lambda extent: extent == 1, shape))
    if grad.shape[len(grad.shape) - len(trailing) :] == trailing:
        columns = prod(trailing)
        sum_columns(grad.paper, grad.numel // columns, columns)
    if len(shape) == len(grad.shape):
        return summed
    return PaperTensor(shape, grad.dtype, summed.storage, base=summed)


def _count_dependencies(root: Node) -> dict[Node, int]:
    waiting: dict[Node, int] = {}
    stack = [root]
    while stack:
        for target, _, _ in stack.pop().edges:
            if target is None:
                continue
            if target not in waiting:
                waiting[target] = 0
                stack.append(target)
            waiting[target] += 1
    return waiting
