"""Positions and attention masks on paper tensors.

Source: transformers 5.23.0 ``masking_utils.py`` (``create_causal_mask``, ``find_packed_sequence_indices``,
``_ignore_causal_mask_sdpa``) and the ``forward`` of each decoder.
"""

from qmem.estimator.paper import Paper, PaperTensor, empty


def position_ids(paper: Paper, s: int) -> PaperTensor:
    """``torch.arange(s) + past``: ``[1, s]``; the range itself goes at once."""
    paper.rule = "position ids"
    positions = empty(paper, (s,), "int64")
    shifted = empty(paper, (1, s), "int64")
    del positions
    return shifted


def causal_mask(paper: Paper, b: int, s: int, dtype: str, *, attention: str, window: int | None) -> PaperTensor | None:
    """Eager attention always gets a mask, in the embeddings' dtype; sdpa only where a window is not longer than s."""
    _look_for_packed_sequences(paper, b, s)
    paper.rule = "attention mask"
    if attention == "eager":
        visible = empty(paper, (1, 1, s, s), "bool")
        mask = empty(paper, (b, 1, s, s), dtype)
        del visible
        return mask
    if window is not None and s >= window:
        return _windowed(paper, s)
    return None


def _windowed(paper: Paper, s: int) -> PaperTensor:
    """``create_sliding_window_causal_mask``: inside the window and not ahead, each at full size, then joined."""
    ahead_of_window = empty(paper, (1, 1, s, s), "bool")
    inside = empty(paper, (1, 1, s, s), "bool")
    del ahead_of_window
    not_ahead = empty(paper, (1, 1, s, s), "bool")
    mask = empty(paper, (1, 1, s, s), "bool")
    del not_ahead, inside
    return mask


def _look_for_packed_sequences(paper: Paper, b: int, s: int) -> None:
    """``find_packed_sequence_indices``: differences of the positions and their running count; none is packed."""
    paper.rule = "packed sequences"
    first = empty(paper, (b, 1), "int64")
    joined = empty(paper, (b, s + 1), "int64")
    difference = empty(paper, (b, s), "int64")
    del joined
    jumps = empty(paper, (b, s), "bool")
    count = empty(paper, (b, s), "int64")
    cast = empty(paper, (b, s), "int64")
    del cast, jumps, first, difference, count
