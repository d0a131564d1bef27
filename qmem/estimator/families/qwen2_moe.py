"""The step of a Qwen2-MoE: a Qwen2's attention, experts, and a shared expert that every token passes with a gate.

Source: transformers 5.23.0 ``models/qwen2_moe/modeling_qwen2_moe.py``.
"""

from collections.abc import Mapping

from qmem.estimator.activations import sigmoid
from qmem.estimator.families import llama
from qmem.estimator.families.mixture import SparseBlock, assemble, experts, router
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import FULL, SLIDING
from qmem.estimator.operations import add, mul, view
from qmem.estimator.paper import Module, PaperTensor


def build(parts: Parts) -> CausalLM:
    """A Llama with experts; masks of both kinds are made, whatever the layers use."""
    config = parts.config
    window = config["sliding_window"] if config["use_sliding_window"] else 0
    of = llama.options(parts)._replace(window=window, layer_types=config["layer_types"], mask_kinds=(FULL, SLIDING))
    return assemble(parts, of, _block)


def _block(parts: Parts, layer: int, modules: dict[str, Module]) -> Module:
    return shared_expert_block(parts, layer, modules, normalizes=parts.config["norm_topk_prob"])


def shared_expert_block(parts: Parts, layer: int, modules: Mapping[str, Module], *, normalizes: bool) -> Module:
    """The experts of a layer, and the one that is shared; probabilities may be made to sum to one."""
    shared = {f"mlp.{name}_proj": modules[f"mlp.shared_expert.{name}_proj"] for name in ("gate", "up", "down")}
    shared_expert = llama.MLP(parts.paper, shared, llama.options(parts).activation)
    gate = router(parts, layer, normalizes=normalizes)
    return SharedExpertBlock(gate, experts(parts, layer), shared_expert, modules["mlp.shared_expert_gate"])


class SharedExpertBlock(SparseBlock):
    """``Qwen2MoeSparseMoeBlock``."""

    def __init__(self, gate: Module, experts: Module, shared_expert: Module, shared_expert_gate: Module) -> None:
        super().__init__(gate, experts)
        self.shared_expert, self.shared_expert_gate = shared_expert, shared_expert_gate

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """The experts' result and the shared expert's, whose gate is one number a token."""
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states_reshaped = view(hidden_states, (batch_size * sequence_length, hidden_dim))
        shared_expert_output = self.shared_expert(hidden_states_reshaped)
        _, routing_weights, selected_experts = self.gate(hidden_states_reshaped)
        expert_output = self.experts(hidden_states_reshaped, selected_experts, routing_weights)
        shared_expert_output = mul(sigmoid(self.shared_expert_gate(hidden_states_reshaped)), shared_expert_output)
        expert_output = add(expert_output, shared_expert_output)
        expert_output = view(expert_output, (batch_size, sequence_length, hidden_dim))
        return expert_output  # noqa: RET504 - the local lives to the end of the frame, as in transformers
