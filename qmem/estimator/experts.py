"""Experts of a mixture and their routers on paper tensors: all experts as two stacks of weights, in grouped products.

A grouped product makes its result at once: which rows go to which expert decides no size.  Sources: transformers
5.23.0 ``integrations/moe.py`` (``grouped_mm_experts_forward``, which ``get_correct_experts_implementation`` chooses
unless told otherwise), ``models/qwen3_moe/modeling_qwen3_moe.py``; torch 2.14.1
``aten/src/ATen/native/cuda/GroupedBlas.cpp``, ``derivatives.yaml`` (``_grouped_mm``).
"""

from typing import NamedTuple

from qmem.estimator.activations import Activation
from qmem.estimator.attention import softmax, softmax_fp32
from qmem.estimator.fused_adapters import FusedParameter
from qmem.estimator.operations import add_in_place, linear, mul, to, use_cublas, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.routing import (
    divide_in_place,
    inverse,
    numbers,
    running_sum,
    sort,
    sum_last,
    sum_of_choices,
    take,
    topk,
)
from qmem.estimator.slicing import split
from qmem.estimator.tape import Gradients, record
from qmem.ledger import Kind

BYTES_PER_SM = {9: (512, 512), 10: (5376, 5888)}
"""Workspace of CUTLASS's grouped kernels for each multiprocessor, by the major compute capability, for groups of few
and of many rows and columns: on 9 four TMA descriptors of 128 bytes.  As the kernels themselves ask for it."""

SMALL_TILE = 128
"""Rows or columns of a group up to which the smaller tile runs."""

GROUP_BYTES, GROUP_PADDING = 60, 24
"""Three pointers, three strides of 8 bytes and a shape of 12 for each group; three paddings after an odd number."""

Routed = tuple[PaperTensor, PaperTensor, PaperTensor]
"""Logits, the weights of the chosen experts, and which they are."""


class TopKRouter(Module):
    """``Qwen3MoeTopKRouter``: the most probable experts, their probabilities in the logits' dtype.

    Attributes:
        normalizes: the probabilities of the chosen are made to sum to one.
        keeps_fp32: the logits are made fp32 first, and the probabilities stay so (``MixtralTopKRouter``).
    """

    def __init__(
        self, paper: Paper, weight: FusedParameter, top_k: int, *, normalizes: bool, keeps_fp32: bool = False
    ) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp.gate"))
        self.weight, self.top_k = weight, top_k
        self.normalizes, self.keeps_fp32 = normalizes, keeps_fp32

    def forward(self, hidden_states: PaperTensor) -> Routed:
        """One row a token."""
        router_logits = linear(hidden_states, self.weight.read())
        router_probs = softmax(to(router_logits, "fp32")) if self.keeps_fp32 else softmax_fp32(router_logits)
        router_top_value, router_indices = topk(router_probs, self.top_k)
        if self.normalizes:
            router_top_value = divide_in_place(router_top_value, sum_last(router_top_value))
        if not self.keeps_fp32:
            router_top_value = to(router_top_value, router_logits.dtype)
        return router_logits, router_top_value, router_indices


class Biases(NamedTuple):
    """What experts add to their products: ``[experts, 2 x inner]`` and ``[experts, width]``."""

    gate_up_proj: PaperTensor
    down_proj: PaperTensor


class Experts(Module):
    """``Qwen3MoeExperts``: ``[experts, 2 x inner, width]`` and ``[experts, width, inner]``.

    ``transposed`` ones are ``[experts, width, 2 x inner]`` and ``[experts, inner, width]``.
    """

    def __init__(
        self,
        paper: Paper,
        gate_up_proj: FusedParameter,
        down_proj: FusedParameter,
        act_fn: Activation,
        biases: Biases | None = None,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp.experts"))
        self.gate_up_proj, self.down_proj, self.biases = gate_up_proj, down_proj, biases
        self.act_fn = act_fn
        self.transposed = transposed

    def forward(self, hidden_states: PaperTensor, top_k_index: PaperTensor, top_k_weights: PaperTensor) -> PaperTensor:
        """Rows sorted by expert, two products, each row by its weight, rows back in order and summed for each token."""
        paper, n_tokens, biases = self.paper, hidden_states.shape[0], self.biases
        sample_weights = view(top_k_weights, (top_k_weights.numel,))
        expert_ids_g, perm = sort(top_k_index)
        selected_hidden_states_g = take(hidden_states, numbers(perm, "token of each row"))
        sample_weights_g = take(sample_weights, perm)
        histc_input = numbers(expert_ids_g, "experts in order", "int32")  # noqa: F841 - lives to the end of the frame
        paper.rule = "rows of each expert"
        tokens_per_expert = empty(paper, self.down_proj.weight.shape[:1], "int32")
        offsets = running_sum(tokens_per_expert)
        selected_weights = self.gate_up_proj.read()
        selected_biases = take(biases.gate_up_proj, expert_ids_g) if biases else None
        proj_out = self.multiply(selected_hidden_states_g, selected_weights, offsets, selected_biases)
        proj_out = self.apply_gate(proj_out)
        selected_weights = self.down_proj.read()
        selected_biases = take(biases.down_proj, expert_ids_g) if biases else None
        proj_out = self.multiply(proj_out, selected_weights, offsets, selected_biases)
        weighted_out = mul(proj_out, view(sample_weights_g, (sample_weights_g.numel, 1)))
        inv_perm = inverse(perm)
        weighted_out = take(weighted_out, inv_perm)
        final_hidden_states = sum_of_choices(weighted_out, n_tokens)
        return to(final_hidden_states, hidden_states.dtype)

    def multiply(
        self, x: PaperTensor, weight: PaperTensor, offsets: PaperTensor, bias: PaperTensor | None
    ) -> PaperTensor:
        """``_grouped_linear``: the bias is added in place."""
        out = grouped_mm(x, weight, offsets, transposed=self.transposed)
        return out if bias is None else add_in_place(out, bias)

    def apply_gate(self, gate_up_out: PaperTensor) -> PaperTensor:
        """``_default_apply_gate``."""
        inner = gate_up_out.shape[1] // 2
        gate, up = split(gate_up_out, (inner, inner))
        return mul(self.act_fn(gate), up)


def grouped_mm(x: PaperTensor, weight: PaperTensor, offsets: PaperTensor, *, transposed: bool) -> PaperTensor:
    """``_grouped_mm(x, weight.transpose(-2, -1), offs)``, which autocast leaves alone: ``x`` takes the weight's dtype.

    Saves ``x`` only if the weight needs a gradient and the weight only if ``x`` does, and the ends of the groups.  The
    weight's gradient comes first.
    """
    x = to(x, weight.dtype)
    x_shape, weight_shape = x.shape, weight.shape
    n_experts = weight_shape[0]
    width = weight_shape[2 if transposed else 1]

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_weight = grad_x = None
        if needs[1]:
            grad_weight = empty(g.paper, weight_shape, g.dtype)
            _multiply_groups(grad_weight, n_experts, width, x_shape[1])
        if needs[0]:
            grad_x = empty(g.paper, x_shape, g.dtype)
            _multiply_groups(grad_x, n_experts, x_shape[0] // n_experts, x_shape[1])
        return grad_x, grad_weight

    saved = (x if weight.requires_grad else None, offsets, weight if x.requires_grad else None)
    node = record(x.paper, "grouped_mm", [x, weight], backward, saved)
    out = empty(x.paper, (x_shape[0], width), x.dtype, node)
    _multiply_groups(out, n_experts, x_shape[0] // n_experts, width)
    return out


def _multiply_groups(product: PaperTensor, n_experts: int, rows: int, columns: int) -> None:
    """What the kernel asks for besides its result, which is there by then.

    bf16 on Hopper and B200 runs CUTLASS's grouped kernel: pointers, strides and shapes of all groups, and descriptors
    for each multiprocessor, of a larger tile where a group has more than 128 rows and columns.  All else is a loop over
    cuBLAS.
    """
    paper = product.paper
    major, _ = paper.gpu.capability
    if product.dtype != "bf16" or major not in BYTES_PER_SM:
        use_cublas(paper)
        return
    small, large = BYTES_PER_SM[major]
    arguments = empty(paper, (GROUP_BYTES * n_experts + GROUP_PADDING * (n_experts % 2),), "uint8")
    workspace = empty(paper, (paper.gpu.sm_count * (large if min(rows, columns) > SMALL_TILE else small),), "uint8")
    del workspace, arguments
