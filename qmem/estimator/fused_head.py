"""TRL's fused head and the loss that it feeds, on paper tensors: labelled positions are scored tile by tile.

Sources: trl 1.16.0 ``trainer/utils.py`` (``add_fused_lm_head``), ``kernels/chunked_logprob.py``
(``ChunkedLogProbFunction``), ``trainer/sft_trainer.py`` (``compute_loss``).  Every position is a label here, so what
is masked out is the last position of each sequence alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

from qmem.estimator.masked import count, scatter, select, total
from qmem.estimator.operations import divide, negate, scale, use_cublas
from qmem.estimator.paper import Paper, PaperTensor, empty
from qmem.estimator.reductions import sum_columns
from qmem.estimator.tape import Gradients, record, save_output

TOKENS, WORDS = 4096, 32768
"""``TOKEN_CHUNK_SIZE`` and ``_CHUNKED_LOGPROB_CHUNK_SIZE``: the sides of a tile."""

STATISTICS = ("maximum", "sum of exponentials", "weighted sum", "sum of squares", "sum of logits",
              "maximum before the target", "logit of the target")  # fmt: skip
"""What is kept for each position while the vocabulary passes by, whether it is asked for or not."""


class Head(NamedTuple):
    """The weight that hidden states are multiplied by; the head's module is never called."""

    weight: PaperTensor
    bias: PaperTensor | None


class Scores(NamedTuple):
    """``FusedCausalLMOutput``: for each position whose successor is known; ``loss`` is made, and nobody uses it."""

    loss: PaperTensor
    log_probs: PaperTensor
    entropy: PaperTensor
    is_top1: PaperTensor
    label_mask: PaperTensor


def fused_head(hidden_states: PaperTensor, head: Head) -> Scores:
    """``_fused_forward`` from the last hidden state on; the mask lives in what is saved and in the scores."""
    paper = hidden_states.paper
    hidden_states = _without_last(hidden_states)
    paper.rule = "labelled positions"
    mask = empty(paper, hidden_states.shape[:2], "bool")
    scored = select(hidden_states, mask)
    paper.rule = "labels"
    targets = select(PaperTensor(mask.shape, "int64", mask.storage), mask)
    raw = _score(scored, head, targets)
    del scored, targets
    scores = [scatter(x, mask) for x in raw]
    del raw
    log_probs, entropy, is_top1 = scores
    summed = total(log_probs)
    negated = negate(summed)
    del summed
    loss = divide(negated, count(mask))
    return Scores(loss, log_probs, entropy, is_top1, mask)


def _without_last(x: PaperTensor) -> PaperTensor:
    """``x[:, :-1]``: a view; backward makes zeros of the full shape."""
    b, s, *rest = x_shape = x.shape
    node = record(x.paper, "slice", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return PaperTensor((b, s - 1, *rest), x.dtype, x.storage, node, base=x)


def _score(hidden: PaperTensor, head: Head, targets: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
    """``ChunkedLogProbFunction``: log-probability, entropy and whether it is the most likely word, of each target.

    One buffer of a tile of logits serves all; backward fills it again, turns it into its gradient in place, and adds
    up the gradients of both factors in fp32.
    """
    paper, n = hidden.paper, hidden.shape[0]
    compute_dtype = paper.autocast_dtype or hidden.dtype

    def backward(
        _g: PaperTensor,
        needs: list[bool],
        hidden: PaperTensor,
        weight: PaperTensor,
        bias: PaperTensor | None,
        *_: PaperTensor,
    ) -> Gradients:
        inputs = (hidden, weight, bias)
        grads = [_zeros(x) if x is not None and needs[i] else None for i, x in enumerate(inputs)]
        factors = _Factors(keeps_words=True)
        tile = empty(paper, (min(n, TOKENS), WORDS), compute_dtype)  # noqa: F841 - lives to the end of the frame
        for words in factors.tiles(hidden, Head(weight, bias), compute_dtype):
            if grads[2] is not None:
                summed = empty(paper, (words,), "fp32")
                sum_columns(paper, min(n, TOKENS), words)
                del summed
        fitted = tuple(_fitted(grad, x) for grad, x in zip(grads, inputs, strict=True))
        _drop(grads)
        return fitted

    node = record(paper, "fused head", [hidden, *head], backward, (hidden, *head, targets))
    statistics = []
    for statistic in STATISTICS:
        paper.rule = f"fused head, {statistic}"
        statistics.append(empty(paper, (n,), "fp32"))
    paper.rule = "fused head, tile of logits"
    factors = _Factors(keeps_words=False)
    tile = empty(paper, (min(n, TOKENS), WORDS), compute_dtype)  # noqa: F841 - lives to the end of the frame
    for _ in factors.tiles(hidden, head, compute_dtype):
        pass
    paper.rule = "fused head"
    logarithm = empty(paper, (n,), "fp32")
    log_z = empty(paper, (n,), "fp32")
    del logarithm
    log_probs = empty(paper, (n,), "fp32", node)
    mean = empty(paper, (n,), "fp32")
    entropy = empty(paper, (n,), "fp32", node)
    del mean
    at_least, above = (empty(paper, (n,), "bool") for _ in range(2))
    is_top1 = empty(paper, (n,), "bool")
    del at_least, above
    save_output(node, log_z, entropy)
    _drop(statistics)
    return log_probs, entropy, is_top1


def _drop(tensors: list[PaperTensor] | list[PaperTensor | None]) -> None:
    """Free in order, as the locals of a frame go; a list would be cleared from its end."""
    while tensors:
        del tensors[0]


class _Factors:
    """The slices whose product a tile is, in the dtype of the computation; the last ones live as long as this.

    ``keeps_words``: backward has a name for the slice of the weight, so that it lives until the next one is made.
    """

    def __init__(self, *, keeps_words: bool) -> None:
        self.keeps_words = keeps_words
        self.rows: PaperTensor | None = None
        self.words: PaperTensor | None = None

    def tiles(self, hidden: PaperTensor, head: Head, compute_dtype: str) -> Iterator[int]:
        """The words of each tile, while its factors are there."""
        paper, n_words = hidden.paper, head.weight.shape[0]
        n, width = hidden.shape
        for start in range(0, n, TOKENS):
            self.rows = _cast(paper, (min(TOKENS, n - start), width), hidden.dtype, compute_dtype)
            for first in range(0, n_words, WORDS):
                length = min(WORDS, n_words - first)
                self.words = _cast(paper, (length, width), head.weight.dtype, compute_dtype)
                use_cublas(paper)
                self.words = self.words if self.keeps_words else None
                if head.bias is not None:
                    added = _cast(paper, (length,), head.bias.dtype, compute_dtype)
                    del added
                yield length


def _cast(paper: Paper, shape: tuple[int, ...], dtype: str, wanted: str) -> PaperTensor | None:
    """A slice in the wanted dtype; nothing where it is a view."""
    return None if dtype == wanted else empty(paper, shape, wanted)


def _zeros(x: PaperTensor) -> PaperTensor:
    return empty(x.paper, x.shape, "fp32")


def _fitted(grad: PaperTensor | None, x: PaperTensor | None) -> PaperTensor | None:
    if grad is None or x is None or x.dtype == "fp32":
        return grad
    return empty(x.paper, x.shape, x.dtype)


def sft_loss(scores: Scores) -> PaperTensor:
    """``compute_loss`` after the forward: the mean over the labelled tokens of the step, and the counts for the log."""
    paper = scores.loss.paper
    paper.rule = "loss"
    per_token = negate(scores.log_probs)
    summed = total(per_token)
    divisor = empty(paper, (), "fp32")
    loss = divide(summed, divisor)
    del summed, divisor
    loss = scale(loss)
    paper.rule = "entropy and accuracy, for the log"
    kept = [count(scores.label_mask), total(scores.entropy.detached()), count(scores.is_top1)]
    del kept, per_token
    return loss
