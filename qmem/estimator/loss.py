"""The loss of a causal language model on paper tensors, and the wrapper that autocast puts around the forward.

Sources: transformers 5.23.0 ``loss/loss_utils.py`` (``ForCausalLMLoss``, ``fixed_cross_entropy``); torch 2.14.1
``aten/src/ATen/native`` (``log_softmax``, ``nll_loss``).
"""

from math import prod

from qmem.estimator.operations import like, to, view
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.tape import Gradients, record, save_output


def causal_lm_loss(logits: PaperTensor, labels: PaperTensor, *, token_mean: bool) -> PaperTensor:
    """``ForCausalLMLoss``: fp32 logits, shifted labels, cross entropy over all positions.

    At its fullest, in the backward of log_softmax, 12 bytes a logit: the saved log-probabilities, the incoming
    gradient and the outgoing one, all fp32.
    """
    paper = logits.paper
    logits = to(logits, "fp32")
    paper.rule = "shifted labels"
    b, s = labels.shape
    labels = empty(paper, (b, s + 1), "int64")
    # Without its first column a single row is contiguous as it is; several rows are copied.
    shift_labels = labels if b == 1 else empty(paper, (b, s), "int64")
    logits = view(logits, (prod(logits.shape[:-1]), logits.shape[-1]))
    loss = _nll_loss(_log_softmax(logits), shift_labels)
    return divided(loss) if token_mean else loss


def _log_softmax(x: PaperTensor) -> PaperTensor:
    """``log_softmax``: saves its result; backward makes one of its size."""
    node = record(x.paper, "log_softmax", [x], lambda _g, _, result: (like(result),))
    result = like(x, node)
    save_output(node, result)
    return result


def _nll_loss(log_probabilities: PaperTensor, labels: PaperTensor) -> PaperTensor:
    """``nll_loss``: a scalar and the total weight; saves its input; backward scatters into zeros of its size."""
    paper = log_probabilities.paper
    shape = log_probabilities.shape

    def backward(g: PaperTensor, _: list[bool], *_saved: PaperTensor) -> Gradients:
        return (empty(g.paper, shape, "fp32"),)

    node = record(paper, "nll_loss", [log_probabilities], backward, (log_probabilities, labels))
    loss = empty(paper, (), "fp32", node)
    save_output(node, empty(paper, (), "fp32"))
    return loss


def divided(loss: PaperTensor) -> PaperTensor:
    """``loss / n``: a new scalar; backward makes one."""
    return like(loss, record(loss.paper, "div", [loss], lambda g, _: (like(g),)))


def scaled_in_place(loss: PaperTensor) -> PaperTensor:
    """``loss *= n``: no new scalar; backward makes one."""
    node = record(loss.paper, "mul_", [loss], lambda g, _: (like(g),))
    return PaperTensor(loss.shape, loss.dtype, loss.storage, node)
