"""The step of a Gemma 2: norms around attention and MLP, a window on every second layer, capped weights and logits.

Only eager attention can cap its weights; the sdpa of transformers raises.
Source: transformers 5.23.0 ``models/gemma2/modeling_gemma2.py``, ``integrations/sdpa_attention.py``.
"""

from qmem.errors import UnsupportedError
from qmem.estimator.families import llama
from qmem.estimator.families.gemma import ScaledEmbedding, refuse_bidirectional, rms_norm
from qmem.estimator.families.heads import SoftCappedHead
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.masks import FULL, SLIDING
from qmem.estimator.operations import add
from qmem.estimator.paper import Module, PaperTensor

NORMS_AROUND = (*llama.PRE_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def build(parts: Parts) -> CausalLM:
    """A Gemma with norms around, windows and caps.

    Raises:
        UnsupportedError: attention weights are to be capped, but not by eager attention.
    """
    soft_capped = parts.config["attn_logit_softcapping"] is not None
    if soft_capped and parts.attention != "eager":
        raise UnsupportedError(
            f"attn_logit_softcapping with the attention {parts.attention}, which transformers refuses too",
            hint="use --attention eager, or set attn_logit_softcapping to null in config.json",
        )
    of = hybrid_options(parts)._replace(soft_capped=soft_capped)
    layers = [
        DecoderLayer(parts.paper, of, llama.layer_modules(parts, index, *NORMS_AROUND, norm=rms_norm))
        for index in range(parts.n_layers)
    ]
    decoder = llama.decoder(parts, of, layers, norm=rms_norm, embedding=ScaledEmbedding(parts))
    return CausalLM(decoder, capped_head(parts))


def hybrid_options(parts: Parts) -> llama.LlamaOptions:
    """Both masks are made, whether or not there are layers of both kinds."""
    refuse_bidirectional(parts)
    config = parts.config
    kinds = {"layer_types": config["layer_types"], "mask_kinds": (FULL, SLIDING)}
    return llama.options(parts)._replace(window=config["sliding_window"], **kinds)


def capped_head(parts: Parts) -> Module:
    """The head, and the cap of the logits where the config has one."""
    head = parts.head()
    return head if parts.config["final_logit_softcapping"] is None else SoftCappedHead(head)


class DecoderLayer(llama.DecoderLayer):
    """``Gemma2DecoderLayer``, ``Gemma3DecoderLayer``."""

    def forward(
        self,
        hidden_states: PaperTensor,
        cos: PaperTensor,
        sin: PaperTensor,
        mask: PaperTensor | None,
        _positions: PaperTensor,
    ) -> PaperTensor:
        """Attention and MLP, each normalized before and after."""
        residual = hidden_states
        hidden_states = self.modules["input_layernorm"](hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, cos, sin, mask)
        hidden_states = self.modules["post_attention_layernorm"](hidden_states)
        hidden_states = add(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.modules["pre_feedforward_layernorm"](hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.modules["post_feedforward_layernorm"](hidden_states)
        hidden_states = add(residual, hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers
