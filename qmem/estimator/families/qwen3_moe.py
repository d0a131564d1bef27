"""The step of a Qwen3-MoE: a Qwen3's attention, and a mixture of experts in the place of the MLP.

Every layer may instead be dense, as ``mlp_only_layers`` and ``decoder_sparse_step`` say.
Source: transformers 5.23.0 ``models/qwen3_moe/modeling_qwen3_moe.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.mixture import assemble, sparse_block
from qmem.estimator.families.parts import CausalLM, Parts


def build(parts: Parts) -> CausalLM:
    """A Llama with ``q_norm`` and ``k_norm``, and experts; a window, if it is in use, is on every layer."""
    config = parts.config
    window = config["sliding_window"] if config["use_sliding_window"] else None
    of = llama.options(parts)._replace(qk_norm=True, window=window)
    return assemble(parts, of, sparse_block)
