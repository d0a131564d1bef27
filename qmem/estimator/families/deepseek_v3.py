"""The step of a DeepSeek-V3: a V2's latent attention with real rotations, experts chosen within the best groups.

Source: transformers 5.23.0 ``models/deepseek_v3/modeling_deepseek_v3.py``.
"""

from qmem.estimator.activations import sigmoid
from qmem.estimator.experts import Routed
from qmem.estimator.families import llama
from qmem.estimator.families.deepseek_v2 import LatentAttention, layer
from qmem.estimator.families.mixture import refuse_what_is_not_walked
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.fused_adapters import Cache, FusedParameter, wrapped
from qmem.estimator.operations import add, add_scalar, linear, mul, scale, to, view
from qmem.estimator.paper import Module, PaperTensor, Role, empty
from qmem.estimator.rotary import Tables, apply_rotary
from qmem.estimator.routing import divide_in_place, gather, masked_fill, sum_last, topk
from qmem.estimator.sinks import subtract
from qmem.estimator.slicing import cat_last, half
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """The first layers are dense."""
    refuse_what_is_not_walked(parts)
    attention = InterleavedAttention if parts.config["rope_interleave"] else PlainAttention
    of = llama.options(parts)._replace(rotary_dim=parts.config["qk_rope_head_dim"])
    layers = [layer(parts, of, index, attention=attention, router=_router) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers), parts.head())


def _router(parts: Parts, index: int) -> Module:
    name = f"{parts.architecture.layers_name}.{index}.mlp.gate"
    weight = parts.fused(f"{name}.weight", Cache())
    return wrapped(Router(parts, weight, parts.tensor(f"{name}.e_score_correction_bias")), weight)


class PlainAttention(LatentAttention):
    """``DeepseekV3Attention`` of halves against each other."""

    def rotated(self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> Tables:
        """``apply_rotary_pos_emb``."""
        return apply_rotary(q, k, cos, sin)


class InterleavedAttention(LatentAttention):
    """``DeepseekV3Attention`` of neighbours against each other."""

    def rotated(self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> Tables:
        """``apply_rotary_pos_emb_interleave``."""
        cos, sin = half(cos), half(sin)
        q1, q2 = half(q), half(q)
        k1, k2 = half(k), half(k)
        return _interleaved(q1, q2, cos, sin), _interleaved(k1, k2, cos, sin)


def _interleaved(x1: PaperTensor, x2: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> PaperTensor:
    first = subtract(mul(x1, cos), mul(x2, sin))
    return cat_last(first, add(mul(x2, cos), mul(x1, sin)))


class Router(Module):
    """``DeepseekV3TopkRouter``: in fp32, but for autocast."""

    def __init__(self, parts: Parts, weight: FusedParameter, correction: PaperTensor) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "mlp.gate"))
        config = parts.config
        self.weight, self.correction = weight, correction
        self.top_k, self.n_group, self.topk_group = (
            config[name] for name in ("num_experts_per_tok", "n_group", "topk_group")
        )
        self.normalizes = config["norm_topk_prob"]

    def forward(self, hidden_states: PaperTensor) -> Routed:
        """The best groups by their two best experts, and the best experts of those groups."""
        b, s, width = hidden_states.shape
        hidden_states = view(hidden_states, (b * s, width))
        router_logits = linear(to(hidden_states, "fp32"), to(self.weight.read(), "fp32"))
        scores = sigmoid(router_logits)
        scores_for_choice = add(scores, self.correction)
        tokens, n_experts = scores.shape
        by_group = (tokens, self.n_group, n_experts // self.n_group)
        group_scores = view(sum_last(topk(view(scores_for_choice, by_group), 2)[0]), by_group[:2])
        group_idx = topk(group_scores, self.topk_group)[1]  # noqa: F841 - the local lives to the end of the frame
        group_mask = empty(self.paper, (tokens, self.n_group), group_scores.dtype)
        score_mask = empty(self.paper, (tokens, n_experts), group_mask.dtype)
        scores_for_choice = masked_fill(scores_for_choice, _negated(score_mask))
        topk_indices = topk(scores_for_choice, self.top_k)[1]
        topk_weights = gather(scores, topk_indices)
        if self.normalizes:
            denominator = add_scalar(sum_last(topk_weights))
            topk_weights = divide_in_place(topk_weights, denominator)
        topk_weights = scale(topk_weights)
        return router_logits, topk_weights, topk_indices


def _negated(mask: PaperTensor) -> PaperTensor:
    """``~mask.bool()``."""
    mask.paper.rule = "mask"
    chosen = empty(mask.paper, mask.shape, "bool")
    left = empty(mask.paper, mask.shape, "bool")
    del chosen
    return left
