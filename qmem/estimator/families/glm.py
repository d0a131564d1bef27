"""The step of a GLM-4: a Llama's, with gate and up in one linear and half of each head rotated, pair by pair.

Source: transformers 5.23.0 ``models/glm/modeling_glm.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.families.phi3 import FusedMLP
from qmem.estimator.paper import PaperTensor, empty
from qmem.estimator.rotary import apply_rotary
from qmem.estimator.slicing import cat_last, part


def build(parts: Parts) -> CausalLM:
    """A Llama of GLM's parts."""
    of = llama.options(parts)
    of = of._replace(rotary_dim=int(of.head_dim * parts.config["partial_rotary_factor"]))
    layers = [_layer(parts, of, index) for index in range(parts.n_layers)]
    return CausalLM(llama.decoder(parts, of, layers), parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int) -> llama.DecoderLayer:
    modules = llama.layer_modules(parts, index, *llama.PRE_NORMS)
    attention, mlp = Attention(parts.paper, of, modules), FusedMLP(parts.paper, modules, of.activation)
    return llama.DecoderLayer(parts.paper, of, modules, attention, mlp)


class Attention(llama.Attention):
    """``GlmAttention``."""

    def rotated(
        self, q: PaperTensor, k: PaperTensor, cos: PaperTensor, sin: PaperTensor
    ) -> tuple[PaperTensor, PaperTensor]:
        """``apply_rotary_pos_emb``: the tables are made anew, each value twice; then as with halves."""
        dim = self.of.rotary_dim
        cos = _interleaved(cos)
        sin = _interleaved(sin)
        q_rot, q_pass = part(q, dim), part(q, q.shape[-1] - dim)
        k_rot, k_pass = part(k, dim), part(k, k.shape[-1] - dim)
        q_embed, k_embed = apply_rotary(q_rot, k_rot, cos, sin)
        q_embed = cat_last(q_embed, q_pass)
        k_embed = cat_last(k_embed, k_pass)
        return q_embed, k_embed


def _interleaved(table: PaperTensor) -> PaperTensor:
    """``table[..., : n // 2].repeat_interleave(2, -1)``: a tensor of the table's size."""
    table.paper.rule = "repeat_interleave"
    return empty(table.paper, table.shape, table.dtype)
