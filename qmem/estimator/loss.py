"""The loss of a causal language model on paper tensors, and the wrapper that autocast puts around the forward.

Sources: transformers 5.23.0 ``loss/loss_utils.py`` (``ForCausalLMLoss``, ``fixed_cross_entropy``); torch 2.14.1
``aten/src/ATen/native`` (``log_softmax``, ``nll_loss``).
"""

from collections.abc import Callable
from math import prod

from qmem.estimator.operations import contiguous, like, to, view
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.slicing import heads, taken_whole
from qmem.estimator.tape import Gradients, record, save_output

Loss = Callable[..., PaperTensor]
"""``loss(logits, labels, token_mean=...)``: a scalar; ``token_mean`` where the loop counts the labelled tokens."""


def causal_lm_loss(logits: PaperTensor, labels: PaperTensor, *, token_mean: bool) -> PaperTensor:
    """``ForCausalLMLoss``: fp32 logits, shifted labels, cross entropy over all positions.

    At its fullest, in the backward of log_softmax, 12 bytes a logit: the saved log-probabilities, the incoming
    gradient and the outgoing one, all fp32.
    """
    paper = logits.paper
    logits = to(logits, "fp32")
    if paper.older.shifts_logits:
        return _loss_of_shifted_logits(logits, labels, token_mean=token_mean)
    paper.rule = "shifted labels"
    b, s = labels.shape
    labels = empty(paper, (b, s + 1), "int64")
    # Without its first column a single row is contiguous as it is; several rows are copied.
    shift_labels = labels if b == 1 else empty(paper, (b, s), "int64")
    logits = view(logits, (prod(logits.shape[:-1]), logits.shape[-1]))
    loss = _nll_loss(_log_softmax(logits), shift_labels)
    return divided(loss) if token_mean else loss


def _loss_of_shifted_logits(logits: PaperTensor, labels: PaperTensor, *, token_mean: bool) -> PaperTensor:
    """``logits[..., :-1, :].contiguous()`` against ``labels[..., 1:].contiguous()``: copies, but of a single row.

    Both slices put the gradient into zeros.
    """
    shift_logits, labels = _shifted(logits, labels)
    loss = _nll_loss(_log_softmax(shift_logits), labels)
    return divided(loss) if token_mean else loss


def _shifted(logits: PaperTensor, labels: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
    b, s, vocab = logits.shape
    shift_logits = taken_whole(heads(logits, s - 1), 1)
    if b > 1:
        shift_logits = contiguous(shift_logits)
        logits.paper.rule = "shifted labels"
        labels = empty(logits.paper, (b, s - 1), "int64")
    return view(shift_logits, (b * (s - 1), vocab)), labels


def shifted_cross_entropy_loss(logits: PaperTensor, labels: PaperTensor, *, token_mean: bool) -> PaperTensor:
    """The same of logits in their own dtype, as older models take it themselves, with a mean of its own in any loop."""
    shift_logits, labels = _shifted(logits, labels)
    return cross_entropy_loss(shift_logits, labels, token_mean=token_mean)


def cross_entropy_loss(logits: PaperTensor, labels: PaperTensor, *, token_mean: bool) -> PaperTensor:  # noqa: ARG001
    """``CrossEntropyLoss()(logits.view(-1, vocab), labels.view(-1))``: no shift, and a mean of its own in any loop.

    The log-probabilities have the dtype of the logits; autocast takes the loss of them in fp32.
    """
    logits = view(logits, (prod(logits.shape[:-1]), logits.shape[-1]))
    log_probabilities = _log_softmax(logits)
    if logits.paper.autocast_dtype is not None:
        log_probabilities = to(log_probabilities, "fp32")
    return _nll_loss(log_probabilities, labels)


def _log_softmax(x: PaperTensor) -> PaperTensor:
    """``log_softmax``: saves its result; backward makes one of its size."""
    node = record(x.paper, "log_softmax", [x], lambda _g, _, result: (like(result),))
    result = like(x, node)
    save_output(node, result)
    return result


def _nll_loss(log_probabilities: PaperTensor, labels: PaperTensor) -> PaperTensor:
    """``nll_loss``: a scalar and the total weight; saves its input; backward scatters into zeros of its size."""
    paper = log_probabilities.paper
    shape, dtype = log_probabilities.shape, log_probabilities.dtype

    def backward(g: PaperTensor, _: list[bool], *_saved: PaperTensor) -> Gradients:
        return (empty(g.paper, shape, dtype),)

    node = record(paper, "nll_loss", [log_probabilities], backward, (log_probabilities, labels))
    loss = empty(paper, (), dtype, node)
    save_output(node, empty(paper, (), dtype))
    return loss


def divided(loss: PaperTensor) -> PaperTensor:
    """``loss / n``: a new scalar; backward makes one."""
    return like(loss, record(loss.paper, "div", [loss], lambda g, _: (like(g),)))
