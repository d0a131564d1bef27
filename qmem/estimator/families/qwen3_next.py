"""The step of a Qwen3-Next: a Qwen3.5's, with experts, and with queries, keys, values and gate in one projection.

Source: transformers 5.23.0 ``models/qwen3_next/modeling_qwen3_next.py``.
"""

from collections.abc import Mapping

from qmem.estimator.chunks import alias
from qmem.estimator.convolution import causal_conv1d
from qmem.estimator.families import llama, qwen3_5
from qmem.estimator.families.mixture import refuse_what_is_not_walked
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.families.qwen2_moe import shared_expert_block
from qmem.estimator.families.qwen3_5 import LINEAR, channels_first, channels_last, merged_heads
from qmem.estimator.masks import FULL
from qmem.estimator.operations import view
from qmem.estimator.paper import Module, PaperTensor, empty
from qmem.estimator.rotary import Tables
from qmem.estimator.slicing import cat_last, split
from qmem.estimator.tape import Gradients, record, slots


def build(parts: Parts) -> CausalLM:
    """A Qwen3.5 of Qwen3-Next's parts; a layer without a router is dense."""
    refuse_what_is_not_walked(parts)
    of = qwen3_5.options(parts)
    layers = [_layer(parts, of, index, modules) for index, modules in qwen3_5.layer_modules(parts, of).items()]
    return CausalLM(qwen3_5.decoder(parts, of, layers, Decoder), parts.head())


def _layer(parts: Parts, of: llama.LlamaOptions, index: int, modules: Mapping[str, Module]) -> llama.DecoderLayer:
    mixer = qwen3_5.mixer(parts, of, index, modules, GatedDeltaNet)
    dense = "mlp.gate_proj" in modules
    normalizes = parts.config["norm_topk_prob"]
    block = None if dense else shared_expert_block(parts, index, modules, normalizes=normalizes)
    return llama.DecoderLayer(parts.paper, of, modules, mixer, block)


class GatedDeltaNet(qwen3_5.GatedDeltaNet):
    """``Qwen3NextGatedDeltaNet``."""

    def projected(self, hidden_states: PaperTensor) -> list[PaperTensor]:
        """Queries, keys and values are cut out of their projection and joined again for the convolution."""
        modules = self.projections
        projected_states_qkvz = modules["linear_attn.in_proj_qkvz"](hidden_states)
        projected_states_ba = modules["linear_attn.in_proj_ba"](hidden_states)
        query, key, value, z = self._cut(projected_states_qkvz)
        b, a = _gate_logits(projected_states_ba, self.n_key_heads)
        query, key, value = (merged_heads(x) for x in (query, key, value))
        mixed_qkv = cat_last(query, key, value)
        mixed_qkv = channels_first(mixed_qkv)
        mixed_qkv = causal_conv1d(mixed_qkv, self.conv_weight, self.activation)
        return [projected_states_ba, projected_states_qkvz, channels_last(mixed_qkv), z, b, a]

    def _cut(self, mixed_qkvz: PaperTensor) -> list[PaperTensor]:
        """Each head of keys has its queries, its keys, and the values and gates of the heads that share it."""
        b, s, width = mixed_qkvz.shape
        shared = self.n_heads // self.n_key_heads * self.value_dim
        by_head = view(mixed_qkvz, (b, s, self.n_key_heads, width // self.n_key_heads))
        query, key, value, z = split(by_head, (self.key_dim, self.key_dim, shared, shared))
        return [query, key, _single_heads(value, self.n_heads), _single_heads(z, self.n_heads)]


def _gate_logits(x: PaperTensor, n_groups: int) -> list[PaperTensor]:
    """Both halves of each group of ``[b, s, 2 x heads]``: copies, unless groups are of one head.

    Backward joins their gradients (``cat``), which lie as these do if both lie channel by channel.
    """
    paper, x_shape = x.paper, x.shape
    shape = (*x_shape[:-1], x_shape[-1] // 2)

    def backward(grads: dict[int, PaperTensor], _: list[bool]) -> Gradients:
        swapped = all(g.swapped for g in grads.values())
        return (empty(paper, x_shape, grads[0].dtype, swapped=swapped),)

    nodes = slots(record(paper, "split", [x], backward), 2)
    if 1 < n_groups < shape[-1]:
        return [empty(paper, shape, x.dtype, node) for node in nodes]
    return [PaperTensor(shape, x.dtype, x.storage, node, base=x) for node in nodes]


def _single_heads(x: PaperTensor, n_heads: int) -> PaperTensor:
    """``x.reshape(b, s, n_heads, -1)`` of heads that stand together in groups: a copy, unless groups are of one."""
    b, s, groups, width = x_shape = x.shape
    shape = (b, s, n_heads, groups * width // n_heads)
    node = record(x.paper, "reshape", [x], lambda g, _: (alias(g, x_shape),))
    if 1 < groups < n_heads:
        return empty(x.paper, shape, x.dtype, node)
    return PaperTensor(shape, x.dtype, x.storage, node, base=x, swapped=groups < n_heads)


class Decoder(qwen3_5.Decoder):
    """``Qwen3NextModel``: positions as a Llama's."""

    def tables(self, s: int, dtype: str) -> dict[str, Tables]:
        """One row of tables for all sequences."""
        return dict.fromkeys((FULL, LINEAR), llama.Decoder.tables(self, s, dtype)[FULL])
