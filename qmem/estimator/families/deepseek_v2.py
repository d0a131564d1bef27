"""The step of a DeepSeek-V2: attention through a latent, complex rotation, experts beside shared ones.

Queries and keys are wider than values, so no flash kernel takes them.  Source: transformers 5.23.0
``models/deepseek_v2/modeling_deepseek_v2.py``; torch 2.14.1 ``autograd/functions/tensor.cpp`` (``CopySlices``,
``CopyBackwards``).
"""

from collections.abc import Callable, Mapping

from qmem.errors import UnsupportedError
from qmem.estimator.attention import eager, sdpa, softmax_fp32
from qmem.estimator.experts import Routed
from qmem.estimator.families import llama
from qmem.estimator.families.mixture import SparseBlock, experts, refuse_what_is_not_walked
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.fused_adapters import Cache, FusedParameter, wrapped
from qmem.estimator.operations import add, contiguous, linear, scale, swap_heads, to, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.rotary import Tables, as_real, complex_table, times_complex
from qmem.estimator.routing import topk
from qmem.estimator.slicing import cat_last, split
from qmem.estimator.tape import Gradients, record
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """The first layers are dense.

    Raises:
        UnsupportedError: experts are chosen by groups.
    """
    refuse_what_is_not_walked(parts)
    config = parts.config
    if config["topk_method"] != "greedy":
        raise UnsupportedError(
            f"topk_method = {config['topk_method']!r} is not modelled yet", hint="DeepSeek-V2-Lite chooses greedily"
        )
    of = llama.options(parts)._replace(rotary_dim=config["qk_rope_head_dim"])
    layers = [layer(parts, of, index, attention=LatentAttention, router=_router) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers, model=Decoder), parts.head())


def layer(
    parts: Parts,
    of: llama.LlamaOptions,
    index: int,
    *,
    attention: "type[LatentAttention]",
    router: Callable[[Parts, int], Module],
) -> Module:
    """A dense layer, or one with experts."""
    latents = ("self_attn.kv_a_layernorm", "self_attn.q_a_layernorm")
    names = [name for name in latents if name != latents[1] or parts.config["q_lora_rank"] is not None]
    modules = llama.layer_modules(parts, index, *llama.norm_names(of), *names)
    mlp = None
    if index >= parts.config["first_k_dense_replace"]:
        shared = {f"mlp.{name}_proj": modules[f"mlp.shared_experts.{name}_proj"] for name in ("gate", "up", "down")}
        mlp = MoE(router(parts, index), experts(parts, index), llama.MLP(parts.paper, shared, of.activation))
    return llama.DecoderLayer(parts.paper, of, modules, attention(parts, of, modules), mlp)


def _router(parts: Parts, layer: int) -> Module:
    weight = parts.fused(f"{parts.architecture.layers_name}.{layer}.mlp.gate.weight", Cache())
    return wrapped(Router(parts.paper, weight, parts.config["num_experts_per_tok"]), weight)


class Decoder(llama.Decoder):
    """``DeepseekV2Model``: one table of complex numbers."""

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:  # noqa: ARG002 - complex numbers stay fp32
        """``DeepseekV2RotaryEmbedding.forward``: ``polar(1, freqs) * scaling``, two fp32 numbers each."""
        freqs_cis = complex_table(self.paper, s, self.of.rotary_dim)
        return dict.fromkeys(self.of.kinds_of_masks(), (freqs_cis, freqs_cis))


class LatentAttention(Module):
    """``DeepseekV2Attention``."""

    def __init__(self, parts: Parts, of: llama.LlamaOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "self_attn"))
        self.of, self.modules = of, modules
        config = parts.config
        self.plain, self.rotary = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.value, self.latent = config["v_head_dim"], config["kv_lora_rank"]

    def forward(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor, mask: PaperTensor | None
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Queries and keys are put together of a part without and a part with positions."""
        of, modules = self.of, self.modules
        b, s, _ = hidden_states.shape
        q = self.queries(hidden_states)
        q = swap_heads(view(q, (b, s, of.n_heads, self.plain + self.rotary)))
        q_nope, q_pe = split(q, (self.plain, self.rotary))
        compressed_kv = modules["self_attn.kv_a_proj_with_mqa"](hidden_states)
        k_nope, k_pe = split(compressed_kv, (self.latent, self.rotary))
        k_nope = view(modules["self_attn.kv_a_layernorm"](k_nope), (b, 1, s, self.latent))
        k_pe = view(k_pe, (b, 1, s, self.rotary))
        q_pe, k_pe = self.rotated(q_pe, k_pe, cos, sin)
        query_states = cat_last(q_nope, q_pe)
        key_states, value_states = self.expand_kv(k_nope, k_pe)
        attn_weights = None
        if of.attention == "eager":
            assert mask is not None, "eager attention always gets a mask"
            attn_output, attn_weights = eager(query_states, key_states, value_states, mask)
        else:
            attn_output = swap_heads(sdpa(query_states, key_states, value_states, mask))
            attn_output = contiguous(attn_output) if attn_output.swapped else attn_output
        attn_output = view(attn_output, (b, s, of.n_heads * self.value))
        attn_output = modules["self_attn.o_proj"](attn_output)
        return attn_output, attn_weights

    def rotated(self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, _sin: PaperTensor) -> Tables:
        """Both tables are the one of complex numbers."""
        return _apply_rotary(q, k, cos)

    def queries(self, hidden_states: PaperTensor) -> PaperTensor:
        """Through a latent of their own where the config has one."""
        modules = self.modules
        if "self_attn.q_proj" in modules:
            q: PaperTensor = modules["self_attn.q_proj"](hidden_states)
            return q
        latent = modules["self_attn.q_a_layernorm"](modules["self_attn.q_a_proj"](hidden_states))
        from_latent: PaperTensor = modules["self_attn.q_b_proj"](latent)
        return from_latent

    def expand_kv(self, kv_nope: PaperTensor, k_rot: PaperTensor) -> tuple[PaperTensor, PaperTensor]:
        """Keys and values at all heads."""
        b, _, s, _ = kv_nope.shape
        kv_nope = self.modules["self_attn.kv_b_proj"](kv_nope)
        width = self.plain + self.value
        kv_nope = swap_heads(view(view(kv_nope, (b, s, self.of.n_heads * width)), (b, s, self.of.n_heads, width)))
        k_nope, value_states = split(kv_nope, (self.plain, self.value))
        k_rot = _expanded(k_rot, self.of.n_heads)
        key_states = _filled(k_nope, self.plain + self.rotary)
        key_states = _filled_up(key_states, k_rot)
        return key_states, value_states


def _apply_rotary(xq: PaperTensor, xk: PaperTensor, freqs_cis: PaperTensor) -> Tables:
    """``apply_rotary_emb``: pairs as complex numbers, in fp32."""
    xq_ = to(xq, "fp32")
    xk_ = to(xk, "fp32")
    xq_out = to(as_real(times_complex(xq_, freqs_cis)), xq.dtype)
    xk_out = to(as_real(times_complex(xk_, freqs_cis)), xk.dtype)
    return xq_out, xk_out


def _expanded(x: PaperTensor, n_heads: int) -> PaperTensor:
    """``x.expand`` over heads: a view; backward is a sum."""
    x_shape = x.shape
    node = record(x.paper, "expand", [x], lambda g, _: (empty(g.paper, x_shape, g.dtype),))
    return PaperTensor((x_shape[0], n_heads, *x_shape[2:]), x.dtype, x.storage, node, base=x)


def _filled(first: PaperTensor, width: int) -> PaperTensor:
    """``new_empty``, and ``copy_`` into its first part; backward copies all of the gradient, then that part."""
    shape = first.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        whole = empty(g.paper, g.shape, g.dtype)
        of_part = empty(g.paper, shape, g.dtype)
        del whole
        return (of_part,)

    # The memory is there before the first copy is recorded.
    whole = empty(first.paper, (*shape[:-1], width), first.dtype)
    node = record(first.paper, "copy slices", [first], backward)
    return PaperTensor(whole.shape, whole.dtype, whole.storage, node)


def _filled_up(whole: PaperTensor, second: PaperTensor) -> PaperTensor:
    """``copy_`` into the other part: in the gradient of the whole it becomes zeros."""
    shape = second.shape

    def backward(g: PaperTensor, _: list[bool]) -> Gradients:
        of_whole = empty(g.paper, g.shape, g.dtype)
        of_part = empty(g.paper, shape, g.dtype)
        zeros = empty(g.paper, shape, g.dtype)
        del zeros
        return of_whole, of_part

    node = record(whole.paper, "copy slices", [whole, second], backward)
    return PaperTensor(whole.shape, whole.dtype, whole.storage, node)


class Router(Module):
    """``DeepseekV2TopkRouter``: in fp32, but for autocast."""

    def __init__(self, paper: Paper, weight: FusedParameter, top_k: int) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "mlp.gate"))
        self.weight, self.top_k = weight, top_k

    def forward(self, hidden_states: PaperTensor) -> Routed:
        """The most probable experts, their probabilities scaled."""
        b, s, width = hidden_states.shape
        hidden_states = view(hidden_states, (b * s, width))
        router_logits = linear(to(hidden_states, "fp32"), to(self.weight.read(), "fp32"))
        scores = softmax_fp32(router_logits)
        topk_weights, topk_indices = topk(scores, self.top_k)
        topk_weights = scale(topk_weights)
        return router_logits, topk_weights, topk_indices


class MoE(SparseBlock):
    """``DeepseekV2Moe``."""

    def __init__(self, gate: Module, experts: Module, shared_experts: Module) -> None:
        super().__init__(gate, experts)
        self.shared_experts = shared_experts

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """The experts' result and the shared experts', which see the block's input."""
        residuals = hidden_states
        b, s, width = hidden_states.shape
        _, topk_weights, topk_indices = self.gate(hidden_states)
        hidden_states = view(hidden_states, (b * s, width))
        hidden_states = view(self.experts(hidden_states, topk_indices, topk_weights), (b, s, width))
        hidden_states = add(hidden_states, self.shared_experts(residuals))
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers
