"""The step of a Granite 3: a Llama's, with multipliers on the embedding, on what joins the residual and on the logits.

Source: transformers 5.23.0 ``models/granite/modeling_granite.py``.
"""

from qmem.estimator.families import llama
from qmem.estimator.families.heads import ScaledHead
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.operations import add, scale
from qmem.estimator.paper import Module, PaperTensor


def build(parts: Parts) -> CausalLM:
    """A Llama of Granite's parts."""
    of = llama.options(parts)
    layers = [
        DecoderLayer(parts.paper, of, llama.layer_modules(parts, index, *llama.PRE_NORMS))
        for index in range(parts.n_layers)
    ]
    decoder = llama.decoder(parts, of, layers, embedding=MultipliedEmbedding(parts.embedding()))
    return CausalLM(decoder, ScaledHead(parts.head()))


class MultipliedEmbedding(Module):
    """``inputs_embeds * embedding_multiplier``, after the hook of the embedding."""

    def __init__(self, embedding: Module) -> None:
        super().__init__(embedding.paper, embedding.role)
        self.embedding = embedding

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The rows go when the product is there, unless they are a leaf of the graph."""
        return scale(self.embedding(input_ids))


class DecoderLayer(llama.DecoderLayer):
    """``GraniteDecoderLayer``."""

    def joined(self, residual: PaperTensor, hidden_states: PaperTensor) -> PaperTensor:
        """``residual + hidden_states * residual_multiplier``."""
        return add(residual, scale(hidden_states))
