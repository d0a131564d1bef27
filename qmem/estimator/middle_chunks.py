"""The chunks in the middle of a gated delta rule, of which a brief walk keeps what outlives them.

From one chunk to the next the live bytes grow by the same amount in forward and fall by the same in backward, while
what is born and dies within a chunk is the same in each.  So the fullest moment lies in one of the chunks at the ends,
which are walked in full.  A test compares a brief walk with a full one.
"""

from collections.abc import Iterator
from typing import NamedTuple

from qmem.estimator.chunks import alias
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.tape import Gradients, record, save_output, slots

FIRST, LAST = 2, 3
"""Chunks at the ends: the first has no state to read, the last are where backward begins and makes its sums."""


class Scanned(NamedTuple):
    """What every chunk reads a part of."""

    new_values: PaperTensor
    k_cumdecay: PaperTensor
    query: PaperTensor
    intra_chunk_attn: PaperTensor
    key: PaperTensor
    chunk_decay: PaperTensor


def n_in_the_middle(scanned: Scanned) -> int:
    """How many chunks a brief walk passes over; none in a full one."""
    n_chunks = scanned.key.shape[2]
    return max(n_chunks - FIRST - LAST, 0) if scanned.key.paper.brief else 0


def passed_over(
    scanned: Scanned, state: PaperTensor, result: PaperTensor, n_chunks: int
) -> tuple[PaperTensor, PaperTensor]:
    """The state and the result after ``n_chunks``: only what their products save for backward, and the states."""
    paper, state_shape, result_shape, n_scanned = state.paper, state.shape, result.shape, len(scanned)

    def backward(grads: dict[int, PaperTensor], _: list[bool], *_saved: PaperTensor) -> Gradients:
        # Gradients of what is scanned are added in place to those of the chunks that come before in backward.
        return (*[None] * n_scanned, empty(paper, state_shape, "fp32"), alias(grads[1], result_shape, columns=True))

    node = record(paper, "chunks", (*scanned, state, result), backward, (state,))
    if node is None:
        return state, result
    dtype = paper.autocast_dtype or "fp32"
    saved_shapes = tuple(_saved_shapes(scanned, state_shape, casts=dtype != "fp32"))
    after = state
    for index in range(n_chunks):
        for shape in saved_shapes:
            save_output(node, empty(paper, shape, dtype))
        after = empty(paper, state_shape, "fp32")
        if index < n_chunks - 1:
            save_output(node, after)
    of_state, of_result = slots(node, 2)
    return (
        PaperTensor(state_shape, "fp32", after.storage, of_state),
        PaperTensor(result.shape, result.dtype, result.storage, of_result, columns=result.columns),
    )


def _saved_shapes(scanned: Scanned, state_shape: tuple[int, ...], *, casts: bool) -> Iterator[tuple[int, ...]]:
    """What a chunk's products save: new values less what the state foretold; with casts, both factors of every product.

    Without casts, heads that do not merge are copied.
    """
    new_values, k_cumdecay, query, intra_chunk_attn, key = ((*x.shape[:2], *x.shape[3:]) for x in scanned[:5])
    yield new_values
    if casts:
        yield from (state_shape, k_cumdecay, state_shape, query, intra_chunk_attn, new_values, key)
    elif scanned.query.swapped and not scanned.query.columns and query[0] > 1:
        yield from (query, key)
