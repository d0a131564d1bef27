"""What mixtures of experts share: a Llama's layers with experts in the place of the MLP.

Source: transformers 5.23.0 ``models/{mixtral,qwen2_moe,qwen3_moe}``.
"""

from collections.abc import Callable

from qmem.errors import UnsupportedError
from qmem.estimator.experts import Experts, TopKRouter
from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.fused_adapters import Cache, wrapped
from qmem.estimator.operations import view
from qmem.estimator.paper import NEWEST, Module, PaperTensor, Role
from qmem.ledger import Kind

Block = Callable[[Parts, int, dict[str, Module]], Module]
"""Makes the experts of a layer, of the layer's number and its other modules."""

GROUPED_FROM = (8, 0)
"""Compute capability from which torch multiplies groups (``_can_use_grouped_mm``)."""


def assemble(parts: Parts, of: llama.LlamaOptions, block: Block) -> CausalLM:
    """The model around its layers; a layer without a router is dense.

    Raises:
        UnsupportedError: the config asks for the routers' logits; the card cannot multiply groups.
    """
    refuse_what_is_not_walked(parts)
    layers = [_layer(parts, of, index, block) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers), parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int, block: Block) -> Module:
    modules = llama.layer_modules(parts, index, *llama.norm_names(of))
    dense = "mlp.gate_proj" in modules
    return llama.DecoderLayer(parts.paper, of, modules, mlp=None if dense else block(parts, index, modules))


def refuse_what_is_not_walked(parts: Parts) -> None:
    """Raise ``UnsupportedError`` for older libraries, a loss that balances the experts, and cards without groups."""
    refuse_routers_logits(parts)
    if parts.paper.older != NEWEST:
        raise UnsupportedError(
            "the experts of a mixture under older libraries, a module each, are not modelled", hint="use --stack hf"
        )
    if parts.paper.gpu.capability < GROUPED_FROM:
        major, minor = parts.paper.gpu.capability
        raise UnsupportedError(
            f"the experts of a mixture on a card of compute capability {major}.{minor} are not modelled",
            hint="torch multiplies groups of rows from 8.0 (A100) on: name such a card with --gpu",
        )


def refuse_routers_logits(parts: Parts) -> None:
    """Raise ``UnsupportedError`` where the routers' logits are asked for."""
    if parts.config["output_router_logits"]:
        raise UnsupportedError(
            "the loss that balances the experts (output_router_logits) is not modelled yet",
            hint="set output_router_logits to false in config.json, which is the default",
        )


def sparse_block(
    parts: Parts, layer: int, _modules: dict[str, Module], *, normalizes: bool | None = None, keeps_fp32: bool = False
) -> Module:
    """A router and experts; probabilities sum to one where ``norm_topk_prob`` says so, unless it is given."""
    normalized = parts.config["norm_topk_prob"] if normalizes is None else normalizes
    gate = router(parts, layer, normalizes=normalized, keeps_fp32=keeps_fp32)
    return SparseBlock(gate, experts(parts, layer))


def router(parts: Parts, layer: int, *, normalizes: bool, keeps_fp32: bool = False) -> Module:
    """``mlp.gate`` with its adapter."""
    weight = parts.fused(f"{parts.architecture.layers_name}.{layer}.mlp.gate.weight", Cache())
    top_k = parts.config["num_experts_per_tok"]
    return wrapped(TopKRouter(parts.paper, weight, top_k, normalizes=normalizes, keeps_fp32=keeps_fp32), weight)


def experts(parts: Parts, layer: int) -> Module:
    """``mlp.experts`` with the adapters of both stacks."""
    prefix, cache = f"{parts.architecture.layers_name}.{layer}.mlp.experts", Cache()
    gate_up_proj, down_proj = (parts.fused(f"{prefix}.{name}", cache) for name in ("gate_up_proj", "down_proj"))
    act_fn = llama.options(parts).activation
    return wrapped(Experts(parts.paper, gate_up_proj, down_proj, act_fn), gate_up_proj, down_proj)


class SparseBlock(Module):
    """``Qwen3MoeSparseMoeBlock``."""

    def __init__(self, gate: Module, experts: Module) -> None:
        super().__init__(gate.paper, Role(Kind.INTERMEDIATE, "mlp"))
        self.gate, self.experts = gate, experts

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """The routers' logits, which nobody takes, live until this returns."""
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states_reshaped = view(hidden_states, (batch_size * sequence_length, hidden_dim))
        _, routing_weights, selected_experts = self.gate(hidden_states_reshaped)
        final_hidden_states = self.experts(hidden_states_reshaped, selected_experts, routing_weights)
        return view(final_hidden_states, (batch_size, sequence_length, hidden_dim))
