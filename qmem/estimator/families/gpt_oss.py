"""The step of a GPT-OSS: eager attention with a sink in every head, experts with biases and a clamped gate.

transformers runs it with eager attention or with flash kernels that are not modelled, never with sdpa.
Source: transformers 5.23.0 ``models/gpt_oss/modeling_gpt_oss.py``; torch 2.14.1 ``FunctionsManual.cpp``
(``clamp_backward``).
"""

from collections.abc import Mapping

from qmem.errors import UnsupportedError
from qmem.estimator.activations import sigmoid
from qmem.estimator.attention import softmax
from qmem.estimator.experts import Biases, Experts
from qmem.estimator.families import llama
from qmem.estimator.families.mixture import refuse_what_is_not_walked
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.fused_adapters import Cache
from qmem.estimator.masks import FULL, SLIDING, causal_masks
from qmem.estimator.norms import Fp32WeightRMSNorm
from qmem.estimator.operations import add, add_scalar, linear, mul, scale, to, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.rotary import Tables
from qmem.estimator.routing import topk
from qmem.estimator.sinks import eager_with_sinks, subtract
from qmem.estimator.slicing import cat_last, half, split
from qmem.estimator.tape import Gradients, record
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """A Llama with sinks and experts; both masks are made.

    Raises:
        UnsupportedError: another attention than eager.
    """
    refuse_what_is_not_walked(parts)
    if parts.attention != "eager":
        raise UnsupportedError(
            f"GPT-OSS with the attention {parts.attention}, which transformers refuses too",
            hint="use --attention eager",
        )
    config = parts.config
    kinds = {"layer_types": config["layer_types"], "mask_kinds": (FULL, SLIDING)}
    of = llama.options(parts)._replace(window=config["sliding_window"], **kinds)
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers, norm=_norm, model=Decoder), parts.head())


def _norm(parts: Parts, name: str, role: str) -> Module:
    return Fp32WeightRMSNorm(parts.paper, role, parts.weight(name))


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> "DecoderLayer":
    modules = llama.layer_modules(parts, index, *llama.norm_names(of), norm=_norm)
    prefix = f"{parts.architecture.layers_name}.{index}."
    self_attn = Attention(parts.paper, of, modules, parts.tensor(f"{prefix}self_attn.sinks"))
    weight, bias = (parts.tensor(f"{prefix}mlp.router.{name}") for name in ("weight", "bias"))
    router = Router(parts.paper, weight, bias, parts.config["num_experts_per_tok"])
    return DecoderLayer(parts.paper, of, modules, self_attn, MLP(router, _experts(parts, f"{prefix}mlp.experts")))


def _experts(parts: Parts, name: str) -> "ClampedExperts":
    cache = Cache()
    gate_up_proj, down_proj = (parts.fused(f"{name}.{word}", cache) for word in ("gate_up_proj", "down_proj"))
    biases = Biases(*(parts.tensor(f"{name}.{word}_bias") for word in ("gate_up_proj", "down_proj")))
    return ClampedExperts(parts.paper, gate_up_proj, down_proj, sigmoid, biases, transposed=True)


class Decoder(llama.Decoder):
    """``GptOssModel``: masks are made without positions, tables of half a head."""

    def masks(self, b: int, s: int, dtype: str) -> dict[str, PaperTensor | None]:
        """One with the window and one without."""
        of = self.of
        return causal_masks(
            self.paper, b, s, dtype, attention=of.attention, window=of.window, kinds=of.kinds_of_masks(),
            knows_positions=False,
        )  # fmt: skip

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:
        """The same ones for all layers."""
        return dict.fromkeys(self.of.kinds_of_masks(), _rotary_tables(self.paper, s, self.of.rotary_dim // 2, dtype))


def _rotary_tables(paper: Paper, s: int, width: int, dtype: str) -> Tables:
    paper.rule = "rotary embedding"
    shape = (1, 1, s, width)
    positions = empty(paper, (1, s), "fp32")
    freqs = empty(paper, shape, "fp32")  # noqa: F841 - the local lives to the end of the frame
    del positions
    cos = empty(paper, shape, "fp32")
    cos = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    sin = empty(paper, shape, "fp32")
    return to(cos, dtype), to(sin, dtype)


class DecoderLayer(llama.DecoderLayer):
    """``GptOssDecoderLayer``: the weights of eager attention live until the MLP returns its own scores."""

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and experts, each with its residual."""
        residual = hidden_states
        hidden_states = self.modules["input_layernorm"](hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, cos, sin, mask)
        hidden_states = add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.modules["post_attention_layernorm"](hidden_states)
        hidden_states, _ = self.mlp(hidden_states)
        hidden_states = add(residual, hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Attention(llama.Attention):
    """``GptOssAttention``."""

    def __init__(self, paper: Paper, of: llama.LlamaOptions, modules: Mapping[str, Module], sinks: PaperTensor) -> None:
        super().__init__(paper, of, modules)
        self.sinks = sinks

    def forward(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor, mask: PaperTensor | None
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, rotate, attend, project."""
        of = self.of
        b, s, _ = hidden_states.shape
        query_states, key_states, value_states = self.heads(hidden_states)
        query_states, key_states = self.rotated(query_states, key_states, cos, sin)
        assert mask is not None, "eager attention always gets a mask"
        attn_output, attn_weights = eager_with_sinks(query_states, key_states, value_states, mask, self.sinks)
        attn_output = view(attn_output, (b, s, of.n_heads * of.head_dim))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights

    def rotated(self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> Tables:
        """``apply_rotary_pos_emb``: halves against each other."""
        return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: PaperTensor, cos: PaperTensor, sin: PaperTensor) -> PaperTensor:
    """``_apply_rotary_emb``."""
    width = x.shape[-1] // 2
    first_half, second_half = split(x, (width, width))
    first_ = subtract(mul(first_half, cos), mul(second_half, sin))
    second_ = add(mul(second_half, cos), mul(first_half, sin))
    return cat_last(first_, second_)


class Router(Module):
    """``GptOssTopKRouter``: the softmax of the largest logits only."""

    def __init__(self, paper: Paper, weight: PaperTensor, bias: PaperTensor, top_k: int) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp.router"))
        self.weight, self.bias = weight, bias
        self.top_k = top_k

    def forward(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """Logits, scores of the chosen experts, and which they are."""
        router_logits = linear(hidden_states, self.weight, self.bias)
        router_top_value, router_indices = topk(router_logits, self.top_k)
        router_scores = softmax(router_top_value)
        return router_logits, router_scores, router_indices


class MLP(Module):
    """``GptOssMLP``."""

    def __init__(self, router: Module, experts: Module) -> None:
        super().__init__(router.paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.router, self.experts = router, experts

    def forward(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """The experts' result, and the scores."""
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = view(hidden_states, (batch_size * sequence_length, hidden_dim))
        _, router_scores, router_indices = self.router(hidden_states)
        hidden_states = self.experts(hidden_states, router_indices, router_scores)
        hidden_states = view(hidden_states, (batch_size, sequence_length, hidden_dim))
        return hidden_states, router_scores


class ClampedExperts(Experts):
    """``GptOssExperts``."""

    def apply_gate(self, gate_up_out: PaperTensor) -> PaperTensor:
        """``(up + 1) * gate * sigmoid(alpha * gate)`` of every other column, both clamped."""
        gate, up = half(gate_up_out), half(gate_up_out)
        gate = clamp(gate, bounds=1)
        up = clamp(up, bounds=2)
        glu = mul(gate, self.act_fn(scale(gate)))
        gated_output = mul(add_scalar(up), glu)
        return gated_output  # noqa: RET504 - the local lives to the end of the frame, as in transformers


def clamp(x: PaperTensor, *, bounds: int) -> PaperTensor:
    """``x.clamp``: saves ``x``; backward compares it with each bound, then takes the gradient or a zero."""

    def backward(g: PaperTensor, _: list[bool], saved: PaperTensor) -> Gradients:
        zero = empty(g.paper, (), g.dtype)
        within = [empty(g.paper, saved.shape, "bool") for _ in range(bounds)]
        grad = empty(g.paper, saved.shape, g.dtype)
        del within, zero
        return (grad,)

    return empty(x.paper, x.shape, x.dtype, record(x.paper, "clamp", [x], backward, (x,)))
