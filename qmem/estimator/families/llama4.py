"""The step of the text model of a Llama 4: complex rotation or none, chunks of attention, experts that see all tokens.

Every expert of a layer multiplies every token, scaled by the router's score, so no size depends on the routing.
Source: transformers 5.23.0 ``models/llama4/modeling_llama4.py``; torch 2.14.1 ``derivatives.yaml`` (``repeat``,
``scatter``, ``bmm``), ``aten/src/ATen/autocast_mode.h`` (``bmm`` is cast, ``sum`` is fp32).
"""

from collections.abc import Mapping

from qmem.estimator.activations import Activation, sigmoid
from qmem.estimator.attention import attend
from qmem.estimator.families import llama
from qmem.estimator.families.mixture import refuse_routers_logits
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import CHUNKED, FULL, causal_mask, chunked_mask
from qmem.estimator.norms import L2Norm
from qmem.estimator.operations import (
    add,
    add_in_place,
    cast_for_matmul,
    linear,
    mul,
    swap_heads,
    to,
    use_cublas,
    view,
)
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.rotary import Tables, as_real, complex_table, times_complex
from qmem.estimator.routing import sum_of_choices, topk
from qmem.estimator.slicing import split
from qmem.estimator.tape import Gradients, record
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """A Llama whose layers are of several kinds.

    Raises:
        UnsupportedError: the config asks for the routers' logits.
    """
    refuse_routers_logits(parts)
    config = parts.config
    kinds = {"layer_types": config["layer_types"], "mask_kinds": (FULL, CHUNKED)}
    of = llama.options(parts)._replace(window=config["attention_chunk_size"], **kinds)
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers, model=Decoder), parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> "DecoderLayer":
    modules = llama.layer_modules(parts, index, *llama.PRE_NORMS)
    self_attn = Attention(parts, of, modules, rotates=parts.config["no_rope_layers"][index])
    if "feed_forward.router" in modules:
        return DecoderLayer(parts.paper, of, modules, self_attn, Moe(parts, of, index, modules))
    return DecoderLayer(parts.paper, of, modules, self_attn, _mlp(parts, of, modules, "feed_forward"))


def _mlp(parts: Parts, of: llama.LlamaOptions, modules: Mapping[str, Module], prefix: str) -> llama.MLP:
    projections = {f"mlp.{name}_proj": modules[f"{prefix}.{name}_proj"] for name in ("gate", "up", "down")}
    return llama.MLP(parts.paper, projections, of.activation)


class Decoder(llama.Decoder):
    """``Llama4TextModel``; its window is the size of a chunk."""

    def masks(self, b: int, s: int, dtype: str) -> dict[str, PaperTensor | None]:
        """The mask of all tokens and that of chunks, whether or not there are layers of both kinds."""
        attention, chunk = self.of.attention, self.of.window
        assert chunk is not None, "a chunk has a size"
        return {
            FULL: causal_mask(self.paper, b, s, dtype, attention=attention),
            CHUNKED: chunked_mask(self.paper, b, s, dtype, attention=attention, chunk=chunk),
        }

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:  # noqa: ARG002 - complex numbers stay fp32
        """One table of complex numbers."""
        freqs_cis = complex_table(self.paper, s, self.of.rotary_dim)
        return dict.fromkeys(self.of.kinds_of_masks(), (freqs_cis, freqs_cis))


class Attention(llama.Attention):
    """``Llama4TextAttention``: rotates and normalizes, or scales queries by their position."""

    def __init__(self, parts: Parts, of: llama.LlamaOptions, modules: Mapping[str, Module], *, rotates: bool) -> None:
        super().__init__(parts.paper, of, modules)
        config = parts.config
        self.rotates, self.scales = rotates, config["attn_temperature_tuning"] and not rotates
        normalizes = config["use_qk_norm"] and rotates
        self.qk_norm = L2Norm(parts.paper, Role(Kind.INTERMEDIATE, "self_attn.qk_norm")) if normalizes else None

    def forward(
        self, hidden_states: PaperTensor, freqs_cis: PaperTensor, _sin: PaperTensor, mask: PaperTensor | None
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, rotate or scale, attend, project."""
        of, modules = self.of, self.projections
        b, s, _ = hidden_states.shape
        query_states = llama.split_heads(modules["self_attn.q_proj"](hidden_states), of.n_heads)
        key_states = llama.split_heads(modules["self_attn.k_proj"](hidden_states), of.n_kv_heads)
        value_states = swap_heads(llama.split_heads(modules["self_attn.v_proj"](hidden_states), of.n_kv_heads))
        if self.rotates:
            query_states, key_states = _apply_rotary(query_states, key_states, freqs_cis)
        if self.qk_norm:
            query_states = self.qk_norm(query_states)
            key_states = self.qk_norm(key_states)
        if self.scales:
            positions = _positions(self.paper, s)  # noqa: F841 - the local lives to the end of the frame
            attn_scales = _attention_scales(self.paper, s)
            query_states = to(mul(query_states, attn_scales), query_states.dtype)
        query_states = swap_heads(query_states)
        key_states = swap_heads(key_states)
        attn_output, attn_weights = attend(
            query_states,
            key_states,
            value_states,
            mask,
            attention=of.attention,
            drop=of.attention_dropout,
            fp32=False,
            recast=False,
        )
        attn_output = view(attn_output, (b, s, of.n_heads * of.head_dim))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights


def _apply_rotary(xq: PaperTensor, xk: PaperTensor, freqs_cis: PaperTensor) -> Tables:
    """``apply_rotary_emb``: both are rotated before the first is cast back."""
    xq_ = to(xq, "fp32")
    xk_ = to(xk, "fp32")
    xq_out = as_real(times_complex(xq_, freqs_cis))
    xk_out = as_real(times_complex(xk_, freqs_cis))
    return to(xq_out, xq.dtype), to(xk_out, xk.dtype)


def _positions(paper: Paper, s: int) -> PaperTensor:
    """``torch.arange(s) + 0``."""
    paper.rule = "positions"
    counted = empty(paper, (s,), "int64")
    positions = empty(paper, (s,), "int64")
    del counted
    return positions


def _attention_scales(paper: Paper, s: int) -> PaperTensor:
    """``log1p(floor((positions.float() + 1) / c)) * c + 1``: seven results, each for the next."""
    paper.rule = "attention scales"
    scales = empty(paper, (1, s, 1, 1), "fp32")
    for _ in range(6):
        scales = empty(paper, (1, s, 1, 1), "fp32")
    return scales


class DecoderLayer(llama.DecoderLayer):
    """``Llama4TextDecoderLayer``: what attention returns lives until the layer does, and the router's logits too."""

    def forward(
        self,
        hidden_states: PaperTensor,
        freqs_cis: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and MLP or experts, each with its residual."""
        residual = hidden_states
        hidden_states = self.modules["input_layernorm"](hidden_states)
        attention_states, _ = self.self_attn(hidden_states, freqs_cis, sin, mask)
        hidden_states = add(residual, attention_states)
        residual = hidden_states
        hidden_states = self.modules["post_attention_layernorm"](hidden_states)
        if isinstance(self.mlp, Moe):
            hidden_states, _ = self.mlp(hidden_states)
        else:
            hidden_states = self.mlp(hidden_states)
        hidden_states = add(residual, view(hidden_states, residual.shape))
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Moe(Module):
    """``Llama4TextMoe``: the experts see every token once for each of them."""

    def __init__(self, parts: Parts, of: llama.LlamaOptions, layer: int, modules: Mapping[str, Module]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "feed_forward"))
        prefix = f"{parts.architecture.layers_name}.{layer}.feed_forward"
        self.router = Router(parts, f"{prefix}.router")
        self.experts = Experts(parts, f"{prefix}.experts", of.activation)
        self.shared_expert = _mlp(parts, of, modules, "feed_forward.shared_expert")

    def forward(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """The shared expert's result, to which the sum of the others' is added in place, and the router's logits."""
        width = hidden_states.shape[-1]
        hidden_states = view(hidden_states, (hidden_states.numel // width, width))
        router_scores, router_logits = self.router(hidden_states)
        n_experts = router_scores.shape[1]
        routed_in = _repeated(hidden_states, n_experts)
        routed_in = mul(routed_in, _as_column(router_scores))
        routed_out = self.experts(routed_in)
        out = self.shared_expert(hidden_states)
        out = add_in_place(out, sum_of_choices(routed_out, hidden_states.shape[0]))
        return out, router_logits


def _repeated(x: PaperTensor, times: int) -> PaperTensor:
    """``x.repeat(times, 1)``: a copy; backward is a sum."""
    rows, width = x_shape = x.shape
    node = record(x.paper, "repeat", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return empty(x.paper, (times * rows, width), x.dtype, node)


def _as_column(x: PaperTensor) -> PaperTensor:
    """``x.transpose(0, 1).reshape(-1, 1)``: a copy; the gradient is a view."""
    x_shape = x.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        return (PaperTensor(x_shape, g.dtype, g.storage, base=g),)

    return empty(x.paper, (x.numel, 1), x.dtype, record(x.paper, "reshape", [x], backward))


class Router(Module):
    """``Llama4Router``: the sigmoid of the largest logits; all others are minus infinity, whose sigmoid is 0."""

    def __init__(self, parts: Parts, name: str) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "feed_forward.router"))
        self.weight, self.top_k = parts.weight(name), parts.config["num_experts_per_tok"]

    def forward(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """Scores of all experts, and logits."""
        router_logits = linear(hidden_states, self.weight)
        router_top_value, router_indices = topk(router_logits, self.top_k)
        router_scores = _scattered(router_top_value, router_indices, router_logits.shape)
        router_scores = to(sigmoid(to(router_scores, "fp32")), router_scores.dtype)
        return router_scores, router_logits


def _scattered(values: PaperTensor, places: PaperTensor, shape: tuple[int, ...]) -> PaperTensor:
    """``full_like(...).scatter_(1, places, values)``: saves the places; backward gathers."""
    paper, values_shape = values.paper, values.shape
    paper.rule = "full_like"
    whole = empty(paper, shape, values.dtype)
    node = record(
        paper, "scatter_", [values], lambda g, _, _places: (empty(g.paper, values_shape, g.dtype),), (places,)
    )
    return PaperTensor(shape, whole.dtype, whole.storage, node)


class Experts(Module):
    """``Llama4TextExperts``: ``[experts, width, 2 x inner]`` and ``[experts, inner, width]``."""

    def __init__(self, parts: Parts, name: str, act_fn: Activation) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "feed_forward.experts"))
        self.gate_up_proj, self.down_proj = (parts.tensor(f"{name}.{of}") for of in ("gate_up_proj", "down_proj"))
        self.act_fn = act_fn

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """Two products for all experts at once."""
        n_experts, width, _ = self.gate_up_proj.shape
        hidden_states = view(hidden_states, (n_experts, hidden_states.shape[0] // n_experts, width))
        gate_up = _bmm(hidden_states, self.gate_up_proj)
        inner = gate_up.shape[-1] // 2
        gate, up = split(gate_up, (inner, inner))
        next_states = _bmm(mul(up, self.act_fn(gate)), self.down_proj)
        return view(next_states, (next_states.shape[0] * next_states.shape[1], width))


def _bmm(x: PaperTensor, weight: PaperTensor) -> PaperTensor:
    """``torch.bmm(x, weight)`` under autocast: saves each where the other needs a gradient; the weight's is first."""
    weight = cast_for_matmul(weight)
    x = cast_for_matmul(x)
    x_shape, weight_shape = x.shape, weight.shape

    def backward(g: PaperTensor, needs: list[bool], *_: PaperTensor | None) -> Gradients:
        grad_weight = empty(g.paper, weight_shape, g.dtype) if needs[1] else None
        grad_x = empty(g.paper, x_shape, g.dtype) if needs[0] else None
        use_cublas(g.paper)
        return grad_x, grad_weight

    saved = (x if weight.requires_grad else None, weight if x.requires_grad else None)
    node = record(x.paper, "bmm", [x, weight], backward, saved)
    out = empty(x.paper, (*x_shape[:2], weight_shape[2]), x.dtype, node)
    use_cublas(x.paper)
    return out
