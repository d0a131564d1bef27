"""Positions and attention masks on paper tensors.

Source: transformers 5.23.0 ``masking_utils.py`` (``create_causal_mask``, ``find_packed_sequence_indices``,
``_ignore_causal_mask_sdpa``) and the ``forward`` of each decoder.
"""

from collections.abc import Callable, Iterable

from qmem.errors import UnsupportedError
from qmem.estimator.masked import count
from qmem.estimator.paper import Paper, PaperTensor, empty
from qmem.estimator.reductions import sum_rows

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
"""The kinds of layers, as ``layer_types`` calls them."""

Pattern = Callable[[Paper, int, int], PaperTensor]
"""Makes what each token may see, of batch and sequence: ``[1 or b, 1, s, s]``."""


def position_ids(paper: Paper, s: int) -> PaperTensor:
    """``torch.arange(s) + past``: ``[1, s]``; the range itself goes at once."""
    paper.rule = "position ids"
    positions = empty(paper, (s,), "int64")
    if paper.older.looks_at_mask_once:
        return positions
    shifted = empty(paper, (1, s), "int64")
    del positions
    return shifted


def causal_mask(
    paper: Paper,
    b: int,
    s: int,
    dtype: str,
    *,
    attention: str,
    window: int | None = None,
    knows_positions: bool = True,
    always: bool = False,
) -> PaperTensor | None:
    """Eager attention always gets a mask, in the embeddings' dtype; sdpa only where a window is not longer than s.

    Packed sequences are looked for only where the model hands its positions on.  ``always`` is said by models that
    refuse ``is_causal`` (``allow_is_causal_skip=False``).
    """
    if paper.older.looks_at_mask_once:
        _older_mask(paper, s, window=window)
        return None
    given = _given_mask(paper)
    if given is None and knows_positions:
        _look_for_packed_sequences(paper, b, s)
    paper.rule = "attention mask"
    # Only sdpa leaves out a window that is longer than the sequence.
    windowed = window is not None and (s >= window or attention == "eager")
    if attention == "eager":
        visible = _visible(paper, b, s, given, pattern=_windowed if windowed else _not_ahead)
        zero_and_least = [empty(paper, (), dtype) for _ in range(2)]
        mask = empty(paper, (b, 1, s, s), dtype)
        del zero_and_least, visible
        return mask
    if windowed or always:
        visible = _visible(paper, b, s, given, pattern=_windowed if windowed else _not_ahead)
        return PaperTensor((b, 1, s, s), "bool", visible.storage)
    if given is not None:
        _ask_whether_all_is_set(given)
    return None


def chunked_mask(paper: Paper, b: int, s: int, dtype: str, *, attention: str, chunk: int) -> PaperTensor | None:
    """``create_chunked_causal_mask``: as that of a window, but of every sequence, whose padding on the left counts."""
    given = _given_mask(paper)
    if given is None:
        _look_for_packed_sequences(paper, b, s)
    left_padding = _count_left_padding(paper, b, given)
    paper.rule = "attention mask"
    mask = None
    if attention == "eager":
        visible = _visible(paper, b, s, given, pattern=_chunked)
        zero_and_least = [empty(paper, (), dtype) for _ in range(2)]
        mask = empty(paper, (b, 1, s, s), dtype)
        del zero_and_least, visible
    elif s >= chunk:
        mask = _visible(paper, b, s, given, pattern=_chunked)
    elif given is not None:
        _ask_whether_all_is_set(given)
    del left_padding
    return mask


def _count_left_padding(paper: Paper, b: int, given: PaperTensor | None) -> PaperTensor:
    """How many tokens of each sequence stand before the first that counts."""
    paper.rule = "left padding"
    if given is None:
        return empty(paper, (b,), "int64")
    counted = empty(paper, given.shape, "int64")
    zeros = empty(paper, given.shape, "bool")
    is_padding = empty(paper, given.shape, "bool")
    del zeros, counted
    left_padding = empty(paper, (b,), "int64")
    del is_padding
    return left_padding


def no_mask(paper: Paper) -> None:
    """``create_bidirectional_mask``: what may see everything gets no mask, once one that was given is found all set."""
    given = _given_mask(paper)
    if given is not None:
        _ask_whether_all_is_set(given)


def no_recurrent_mask(paper: Paper) -> None:
    """``create_recurrent_attention_mask``: nothing is masked, once a mask that was given is found to be all ones."""
    mask = paper.attention_mask
    if mask is not None:
        paper.rule = "given mask"
        is_one = empty(paper, mask.shape, "bool")
        are_all = empty(paper, (), "bool")
        sum_rows(paper, 1, mask.numel, "bool")
        del is_one, are_all


def _older_mask(paper: Paper, s: int, *, window: int | None) -> None:
    """``_ignore_causal_mask_sdpa`` of transformers 4.48.1, for sdpa without a window: never a mask.

    Raises:
        UnsupportedError: the mask would be made.
    """
    if window is not None and s >= window:
        raise UnsupportedError(
            f"the mask of a sliding window of {window} at {s} tokens is not modelled yet under older libraries",
            hint=f"shorten the sequences to less than {window}, or set sliding_window to null in the model's config",
        )
    if paper.attention_mask is not None:
        paper.rule = "given mask"
        is_one = empty(paper, paper.attention_mask.shape, "bool")
        are_all = empty(paper, (), "bool")
        del is_one, are_all


def counted_positions(paper: Paper, s: int) -> PaperTensor:
    """Positions as older GPTs take them: counted in the mask that came with the batch, else a range."""
    paper.rule = "position ids"
    mask = paper.attention_mask
    if mask is None:
        positions = empty(paper, (s,), "int64")
        return PaperTensor((1, s), "int64", positions.storage, base=positions)
    counted = empty(paper, mask.shape, "int64")
    positions = empty(paper, mask.shape, "int64")
    del counted
    is_zero = empty(paper, mask.shape, "bool")
    del is_zero
    return positions


def additive_mask(paper: Paper, b: int, s: int, dtype: str) -> PaperTensor:
    """The causal mask as zeros and least numbers, for sdpa; one that came with the batch makes it as large as that.

    Source: transformers 4.48.1 ``models/gpt_bigcode/modeling_gpt_bigcode.py``, ``modeling_attn_mask_utils.py``
    (``_unmask_unattended``).
    """
    paper.rule = "attention mask"
    joined, given = None, paper.attention_mask is not None
    if given:
        allowed = empty(paper, (b, s), "bool")
        joined = empty(paper, (b, 1, s, s), "bool")
        del allowed
    zero_and_least = [empty(paper, (), dtype) for _ in range(2)]
    mask = empty(paper, (b if given else 1, 1, s, s), dtype)
    del zero_and_least, joined
    return _unmasked(mask) if given else mask


def _unmasked(mask: PaperTensor) -> PaperTensor:
    """``mask.mul(~torch.all(mask == least, dim=-1, keepdim=True))``."""
    paper, rows = mask.paper, (*mask.shape[:-1], 1)
    is_least = empty(paper, mask.shape, "bool")
    are_all = empty(paper, rows, "bool")
    del is_least
    are_not = empty(paper, rows, "bool")
    del are_all
    unmasked = empty(paper, mask.shape, mask.dtype)
    del are_not
    return unmasked


def _given_mask(paper: Paper) -> PaperTensor | None:
    """The mask that came with the batch, as booleans."""
    if paper.attention_mask is None:
        return None
    paper.rule = "given mask"
    return empty(paper, paper.attention_mask.shape, "bool")


def _ask_whether_all_is_set(mask: PaperTensor) -> None:
    """``fast_all``: the count of what is set against the number of elements."""
    counted = count(mask)
    equal = empty(mask.paper, (), "bool")
    del equal, counted


def _visible(paper: Paper, b: int, s: int, given: PaperTensor | None, *, pattern: Pattern) -> PaperTensor:
    """What each token may see; a mask that came with the batch is joined with it (``and_masks``).

    The ranges of batch, heads, queries and keys live until it is there.
    """
    ranges = [empty(paper, (extent,), "int64") for extent in (b, 1)]
    for _ in "qk":
        counted = empty(paper, (s,), "int64")
        ranges.append(empty(paper, (s,), "int64"))
        del counted
    ranges.reverse()  # the first local is the first to go
    visible = _seen(paper, b, s, given, pattern)
    del ranges
    return visible


def _seen(paper: Paper, b: int, s: int, given: PaperTensor | None, pattern: Pattern) -> PaperTensor:
    allowed = pattern(paper, b, s)
    if given is None:
        return allowed
    joined = empty(paper, allowed.shape, "bool")
    del allowed
    of_keys = empty(paper, (given.shape[0], 1, 1, s), "bool")
    visible = empty(paper, (given.shape[0], 1, s, s), "bool")
    del of_keys, joined
    return visible


def causal_masks(
    paper: Paper,
    b: int,
    s: int,
    dtype: str,
    *,
    attention: str,
    window: int | None,
    kinds: Iterable[str],
    knows_positions: bool = True,
) -> dict[str, PaperTensor | None]:
    """The mask of each kind of layer, made in the order of ``kinds``; only that of ``SLIDING`` has the window."""
    windows = {kind: window if kind == SLIDING else None for kind in kinds}
    return {
        kind: causal_mask(paper, b, s, dtype, attention=attention, window=of, knows_positions=knows_positions)
        for kind, of in windows.items()
    }


def _not_ahead(paper: Paper, _b: int, s: int) -> PaperTensor:
    """``causal_mask_function``."""
    return empty(paper, (1, 1, s, s), "bool")


def _chunked(paper: Paper, b: int, s: int) -> PaperTensor:
    """``chunked_causal_mask_function``: the chunks of queries and keys are compared, in every sequence."""
    one = empty(paper, (), "bool")
    of_keys, of_queries = _chunk_numbers(paper, b, s), _chunk_numbers(paper, b, s)
    same = empty(paper, (b, 1, s, s), "bool")
    del of_keys, of_queries
    inside = empty(paper, (b, 1, s, s), "bool")
    del same, one
    not_ahead = _not_ahead(paper, b, s)
    mask = empty(paper, (b, 1, s, s), "bool")
    del not_ahead, inside
    return mask


def _chunk_numbers(paper: Paper, b: int, s: int) -> PaperTensor:
    left_padding = empty(paper, (b,), "int64")
    from_first = empty(paper, (b, s), "int64")
    del left_padding
    numbers = empty(paper, (b, s), "int64")
    del from_first
    return numbers


def _windowed(paper: Paper, _b: int, s: int) -> PaperTensor:
    """``create_sliding_window_causal_mask``: inside the window and not ahead, each at full size, then joined."""
    one = empty(paper, (), "bool")
    first_seen = empty(paper, (1, 1, s, 1), "int64")
    ahead_of_window = empty(paper, (1, 1, s, s), "bool")
    del first_seen
    inside = empty(paper, (1, 1, s, s), "bool")
    del ahead_of_window, one
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
    del cast, jumps
    unchanged = empty(paper, (b,), "bool")
    all_unchanged = empty(paper, (), "bool")
    del unchanged, all_unchanged, first, difference, count
