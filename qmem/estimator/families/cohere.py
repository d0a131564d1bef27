"""The step of a Command R or an Aya: attention beside the MLP, rotation in fp32, scaled logits.

Source: transformers 5.23.0 ``models/cohere/modeling_cohere.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.heads import ScaledHead
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.norms import CohereLayerNorm
from qmem.estimator.operations import swap_heads, to
from qmem.estimator.paper import Module, PaperTensor
from qmem.estimator.rotary import apply_rotary


def build(parts: Parts) -> CausalLM:
    """A Llama of Cohere's parts."""
    of = llama.options(parts)._replace(qk_norm=parts.config["use_qk_norm"])
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers, norm=layer_norm), ScaledHead(parts.head()))


def layer_norm(parts: Parts, name: str, role: str) -> Module:
    """The norm of a Cohere."""
    return CohereLayerNorm(parts.paper, role, parts.weight(name))


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> llama.DecoderLayer:
    names = ("input_layernorm", *(llama.QK_NORMS if of.qk_norm else ()))
    modules = llama.layer_modules(parts, index, *names, norm=layer_norm)
    return llama.ParallelLayer(parts.paper, of, modules, Attention(parts.paper, of, modules))


class Attention(llama.Attention):
    """``CohereAttention``."""

    def heads(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor, PaperTensor]:
        """All three are projected before queries and keys are normalized."""
        of, modules = self.of, self.projections
        query_states = llama.split_heads(modules["self_attn.q_proj"](hidden_states), of.n_heads)
        key_states = llama.split_heads(modules["self_attn.k_proj"](hidden_states), of.n_kv_heads)
        value_states = llama.split_heads(modules["self_attn.v_proj"](hidden_states), of.n_kv_heads)
        if of.qk_norm:
            query_states = modules["self_attn.q_norm"](query_states)
            key_states = modules["self_attn.k_norm"](key_states)
        return swap_heads(query_states), swap_heads(key_states), swap_heads(value_states)

    def rotated(
        self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """``apply_rotary_pos_emb``: of fp32 copies, cast back at the end."""
        dtype = q.dtype
        q = to(q, "fp32")
        k = to(k, "fp32")
        q_embed, k_embed = apply_rotary(q, k, cos, sin)
        return to(q_embed, dtype), to(k_embed, dtype)
