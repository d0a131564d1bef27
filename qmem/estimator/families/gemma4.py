"""The step of the text model of a Gemma 4: a Gemma 3's, with heads of two widths and values that are normalized too.

The small models add an embedding of its own to every layer, and their last layers take the keys and values of earlier
ones; 26B-A4B has experts beside its MLP.  Source: transformers 5.23.0 ``models/gemma4/modeling_gemma4.py``.
"""

from collections.abc import Mapping, Sequence

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation
from qmem.estimator.attention import attend, softmax_fp32
from qmem.estimator.checkpointing import reentrant_checkpoint
from qmem.estimator.experts import Experts, Routed
from qmem.estimator.families import llama
from qmem.estimator.families.gemma import ScaledEmbedding
from qmem.estimator.families.gemma2 import NORMS_AROUND, capped_head, hybrid_options
from qmem.estimator.families.mixture import refuse_what_is_not_walked
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.fused_adapters import Cache, wrapped
from qmem.estimator.masks import FULL, SLIDING, position_ids
from qmem.estimator.norms import Gemma4RMSNorm
from qmem.estimator.operations import add, mul, mul_in_place, scale, swap_heads, view
from qmem.estimator.paper import Module, PaperTensor, Role
from qmem.estimator.rotary import Tables, rotary_tables, rotated
from qmem.estimator.routing import divide_in_place, sum_last, take, topk
from qmem.estimator.slicing import one_head, part
from qmem.ledger import Kind

SharedStates = dict[str, tuple[PaperTensor, PaperTensor]]
"""Keys and values that later layers take, by the type of layer."""

EXPERT_NORMS = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")


def build(parts: Parts) -> CausalLM:
    """A Gemma 4.

    Raises:
        UnsupportedError: attention to later tokens; shared keys and values without embeddings of the layers, which
            transformers cannot run; reentrant checkpointing of either; experts where a mixture's are refused.
    """
    of = hybrid_options(parts)
    _refuse_what_is_not_walked(parts)
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    inputs = LayerInputs(parts) if parts.config["hidden_size_per_layer_input"] else None
    return CausalLM(Decoder(parts, of, layers, inputs), capped_head(parts))


def _refuse_what_is_not_walked(parts: Parts) -> None:
    config = parts.config
    shares, width = config["num_kv_shared_layers"], config["hidden_size_per_layer_input"]
    if config["enable_moe_block"]:
        refuse_what_is_not_walked(parts)
    if shares and not width:
        raise UnsupportedError(
            "num_kv_shared_layers without hidden_size_per_layer_input, which transformers 5.23 cannot run, is not"
            " modelled"
        )
    if (shares or width) and parts.checkpoint is reentrant_checkpoint:
        raise UnsupportedError(
            "reentrant checkpointing of layers that share keys and values, or have an embedding of their own, is not"
            " modelled yet",
            hint="set use_reentrant to false, which is the default",
        )


def _norm(parts: Parts, name: str, role: str) -> Module:
    return Gemma4RMSNorm(parts.paper, role, parts.weight(name))


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> "DecoderLayer":
    config = parts.config
    reuses, width = config["kv_sharing"][index] == "reuse", config["hidden_size_per_layer_input"]
    names = (*NORMS_AROUND, "self_attn.q_norm", *(() if reuses else ("self_attn.k_norm",)))
    names += (("post_per_layer_input_norm",) if width else ()) + (EXPERT_NORMS if config["enable_moe_block"] else ())
    modules = llama.layer_modules(parts, index, *names, norm=_norm)
    heads = config["heads"][index]
    own = of._replace(n_kv_heads=heads.n_kv, head_dim=heads.dim)
    self_attn = Attention(parts, own, modules, config["layer_types"][index], config["kv_sharing"][index])
    experts = Mixture(parts, index, modules) if config["enable_moe_block"] else None
    scalar = parts.tensor(f"{parts.architecture.layers_name}.{index}.layer_scalar")
    return DecoderLayer(self_attn, of, modules, scalar, experts)


class Attention(llama.Attention):
    """``Gemma4TextAttention``: projects keys and values of its own, or takes those of an earlier layer of its type."""

    def __init__(
        self, parts: Parts, of: llama.LlamaOptions, modules: Mapping[str, Module], kind: str, sharing: str
    ) -> None:
        super().__init__(parts.paper, of, modules)
        self.kind, self.sharing = kind, sharing
        self.v_norm = Gemma4RMSNorm(parts.paper, "self_attn.v_norm", None)

    def forward(  # type: ignore[override]
        self, hidden_states: PaperTensor, tables: Tables, mask: PaperTensor | None, shared: SharedStates
    ) -> tuple[PaperTensor, PaperTensor | None]:
        """Project, normalize, rotate, attend, project."""
        of = self.of
        b, s, _ = hidden_states.shape
        cos, sin = tables
        query_states = llama.split_heads(self.projections["self_attn.q_proj"](hidden_states), of.n_heads)
        query_states = self.projections["self_attn.q_norm"](query_states)
        query_states = rotated(query_states, cos, sin)
        query_states = swap_heads(query_states)
        if self.sharing == "reuse":
            key_states, value_states = shared[self.kind]
        else:
            key_states, value_states = self.keys_and_values(hidden_states, cos, sin)
        if self.sharing == "store":
            shared[self.kind] = key_states, value_states
        attn_output, attn_weights = attend(
            query_states, key_states, value_states, mask, attention=of.attention, drop=of.attention_dropout
        )
        attn_output = view(attn_output, (b, s, of.n_heads * of.head_dim))
        attn_output = self.o_proj(attn_output)
        return attn_output, attn_weights

    def keys_and_values(
        self, hidden_states: PaperTensor, cos: PaperTensor, sin: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """Where values have no projection, keys that are neither normalized nor rotated stand for them."""
        of, modules = self.of, self.projections
        key_states = llama.split_heads(modules["self_attn.k_proj"](hidden_states), of.n_kv_heads)
        v_proj = modules.get("self_attn.v_proj")
        value_states = llama.split_heads(v_proj(hidden_states), of.n_kv_heads) if v_proj else key_states
        key_states = modules["self_attn.k_norm"](key_states)
        key_states = rotated(key_states, cos, sin)
        key_states = swap_heads(key_states)
        value_states = self.v_norm(value_states)
        value_states = swap_heads(value_states)
        return key_states, value_states


class DecoderLayer(Module):
    """``Gemma4TextDecoderLayer``."""

    def __init__(
        self,
        self_attn: Attention,
        of: llama.LlamaOptions,
        modules: Mapping[str, Module],
        layer_scalar: PaperTensor,
        mixture: "Mixture | None",
    ) -> None:
        super().__init__(self_attn.paper, Role(Kind.INTERMEDIATE, "decoder layer"))
        self.self_attn, self.modules, self.layer_scalar, self.mixture = self_attn, modules, layer_scalar, mixture
        self.mlp = llama.MLP(self.paper, modules, of.activation)
        self.act_fn: Activation = of.activation

    def forward(
        self,
        hidden_states: PaperTensor,
        per_layer_input: PaperTensor | None,
        shared: SharedStates,
        tables: Tables,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention, MLP and the layer's own embedding, each with its residual; all times a number that is stored."""
        modules = self.modules
        residual = hidden_states
        hidden_states = modules["input_layernorm"](hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, tables, mask, shared)
        hidden_states = modules["post_attention_layernorm"](hidden_states)
        hidden_states = add(residual, hidden_states)
        residual = hidden_states
        hidden_states = modules["pre_feedforward_layernorm"](hidden_states)
        hidden_states = self.mlp(hidden_states)
        if self.mixture:
            hidden_states_1 = modules["post_feedforward_layernorm_1"](hidden_states)
            hidden_states_flat = view(residual, (residual.numel // residual.shape[-1], residual.shape[-1]))
            _, top_k_weights, top_k_index = self.mixture.router(hidden_states_flat)
            hidden_states_2 = modules["pre_feedforward_layernorm_2"](hidden_states_flat)
            hidden_states_2 = self.mixture.experts(hidden_states_2, top_k_index, top_k_weights)
            hidden_states_2 = view(hidden_states_2, residual.shape)
            hidden_states_2 = modules["post_feedforward_layernorm_2"](hidden_states_2)
            hidden_states = add(hidden_states_1, hidden_states_2)
        hidden_states = modules["post_feedforward_layernorm"](hidden_states)
        hidden_states = add(residual, hidden_states)
        if per_layer_input is not None:
            residual = hidden_states
            hidden_states = modules["per_layer_input_gate"](hidden_states)
            hidden_states = self.act_fn(hidden_states)
            hidden_states = mul(hidden_states, per_layer_input)
            hidden_states = modules["per_layer_projection"](hidden_states)
            hidden_states = modules["post_per_layer_input_norm"](hidden_states)
            hidden_states = add(residual, hidden_states)
        hidden_states = mul_in_place(hidden_states, self.layer_scalar)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Mixture:
    """The router and the experts of a layer, which stand beside its MLP."""

    def __init__(self, parts: Parts, layer: int, modules: Mapping[str, Module]) -> None:
        prefix, cache = f"{parts.architecture.layers_name}.{layer}", Cache()
        gate_up_proj, down_proj = (
            parts.fused(f"{prefix}.experts.{name}", cache) for name in ("gate_up_proj", "down_proj")
        )
        act_fn = llama.options(parts).activation
        self.experts = wrapped(Experts(parts.paper, gate_up_proj, down_proj, act_fn), gate_up_proj, down_proj)
        self.router = Router(parts, f"{prefix}.router", modules["router.proj"])


class Router(Module):
    """``Gemma4TextRouter``: sees normalized and scaled states; an expert's weight is times a number that is stored."""

    def __init__(self, parts: Parts, name: str, proj: Module) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "router"))
        self.norm, self.proj = Gemma4RMSNorm(parts.paper, "router.norm", None), proj
        self.scale, self.per_expert_scale = parts.tensor(f"{name}.scale"), parts.tensor(f"{name}.per_expert_scale")
        self.top_k = parts.config["top_k_experts"]

    def forward(self, hidden_states: PaperTensor) -> Routed:
        """Probabilities of all experts, the weights of the chosen ones, and which they are."""
        hidden_states = self.norm(hidden_states)
        hidden_states = scale(mul(hidden_states, self.scale))
        expert_scores = self.proj(hidden_states)
        router_probabilities = softmax_fp32(expert_scores)
        top_k_weights, top_k_index = topk(router_probabilities, self.top_k)
        top_k_weights = divide_in_place(top_k_weights, sum_last(top_k_weights))
        top_k_weights = mul(top_k_weights, view(take(self.per_expert_scale, top_k_index), top_k_index.shape))
        return router_probabilities, top_k_weights, top_k_index


class LayerInputs(Module):
    """The embeddings of the layers: rows of a table of their own, joined with a projection of the first embedding."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "per-layer inputs"))
        self.width = parts.config["hidden_size_per_layer_input"]
        self.embed_tokens_per_layer = ScaledEmbedding(parts, "model.embed_tokens_per_layer")
        self.per_layer_model_projection = parts.linear("model.per_layer_model_projection", "per_layer_model_projection")
        self.per_layer_projection_norm = _norm(parts, "model.per_layer_projection_norm", "per_layer_projection_norm")

    def of_tokens(self, input_ids: PaperTensor) -> PaperTensor:
        """``get_per_layer_inputs``: ``[b, s, layers, width]``."""
        return self._by_layer(self.embed_tokens_per_layer(input_ids))

    def forward(self, inputs_embeds: PaperTensor, per_layer_inputs: PaperTensor) -> PaperTensor:
        """``project_per_layer_inputs``."""
        per_layer_projection = scale(self.per_layer_model_projection(inputs_embeds))
        per_layer_projection = self._by_layer(per_layer_projection)
        per_layer_projection = self.per_layer_projection_norm(per_layer_projection)
        return scale(add(per_layer_projection, per_layer_inputs))

    def _by_layer(self, x: PaperTensor) -> PaperTensor:
        b, s, width = x.shape
        return view(x, (b, s, width // self.width, self.width))


class Decoder(llama.Decoder):
    """``Gemma4TextModel``."""

    def __init__(
        self, parts: Parts, of: llama.LlamaOptions, layers: Sequence[Module], inputs: LayerInputs | None
    ) -> None:
        norm = _norm(parts, "model.norm", "norm")
        super().__init__(parts.paper, of, ScaledEmbedding(parts), layers, norm, checkpoint=parts.checkpoint)
        self.inputs = inputs
        config = parts.config
        self.head_dims = {kind: heads.dim for kind, heads in zip(config["layer_types"], config["heads"], strict=True)}
        self.first_shared = len(config["layer_types"]) - config["num_kv_shared_layers"]

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  Before the first layer that takes shared keys and values all is sliced whole."""
        paper, of = self.paper, self.of
        inputs_embeds = self.embedding(input_ids)
        per_layer_inputs = None
        if self.inputs:
            per_layer_inputs = self.inputs.of_tokens(input_ids)
            per_layer_inputs = self.inputs(inputs_embeds, per_layer_inputs)
        b, s, _ = inputs_embeds.shape
        positions = position_ids(paper, s)
        dtype = inputs_embeds.dtype
        masks = self.masks(b, s, dtype)
        hidden_states = inputs_embeds
        tables = self.tables(s, dtype)
        shared: SharedStates = {}
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            if index == self.first_shared and per_layer_inputs is not None:
                hidden_states = part(hidden_states, hidden_states.shape[-1])
                per_layer_inputs = part(per_layer_inputs, per_layer_inputs.shape[-1])
            per_layer_input = None if per_layer_inputs is None else one_head(per_layer_inputs)
            kind = of.kind(index)
            inputs = (hidden_states, per_layer_input, shared, tables[kind], masks[kind], positions)
            hidden_states = self.checkpoint(layer, *inputs) if self.checkpoint else layer(*inputs)
            del inputs
        paper.enter_layer(None)
        last_hidden_state: PaperTensor = self.norm(hidden_states)
        return last_hidden_state

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:
        """Cosines and sines of each type of layer, in the width of its heads.

        The real ones are made in the order of a set of words, which changes from process to process.
        """
        kinds = [kind for kind in (FULL, SLIDING) if kind in self.head_dims]
        return {kind: rotary_tables(self.paper, s, self.head_dims[kind], dtype) for kind in kinds}
