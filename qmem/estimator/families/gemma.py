"""The step of a Gemma (1): a Llama's with a scaled embedding, norms in fp32 throughout, and GELU in the MLP.

Source: transformers 5.23.0 ``models/gemma/modeling_gemma.py``.
"""

from qmem.errors import UnsupportedError
from qmem.estimator.embeddings import Embedding
from qmem.estimator.families import llama
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.norms import GemmaRMSNorm
from qmem.estimator.operations import mul, to
from qmem.estimator.paper import Module, PaperTensor, Role
from qmem.ledger import Kind


def build(parts: Parts) -> CausalLM:
    """A Llama of Gemma's parts.

    Raises:
        UnsupportedError: the config asks for attention to later tokens.
    """
    refuse_bidirectional(parts)
    of = llama.options(parts)
    layers = [
        llama.DecoderLayer(parts.paper, of, llama.layer_modules(parts, index, *llama.PRE_NORMS, norm=rms_norm))
        for index in range(parts.n_layers)
    ]
    decoder = llama.decoder(parts, of, layers, norm=rms_norm, embedding=ScaledEmbedding(parts))
    return CausalLM(decoder, parts.head())


def refuse_bidirectional(parts: Parts) -> None:
    """Raise ``UnsupportedError`` where tokens see later ones (embedding models)."""
    if parts.config["use_bidirectional_attention"]:
        raise UnsupportedError(
            "use_bidirectional_attention, of embedding models, is not modelled yet", hint="plan a causal model"
        )


def rms_norm(parts: Parts, name: str, role: str) -> Module:
    """The norm of a Gemma."""
    return GemmaRMSNorm(parts.paper, role, parts.weight(name))


class ScaledEmbedding(Module):
    """``GemmaTextScaledWordEmbedding``: rows of the weight times a scalar that lies on the GPU.

    ``wants_grad`` is the hook of ``enable_input_require_grads``, which sees the scaled rows; another embedding than the
    model's input, of that full name, has none.
    """

    def __init__(self, parts: Parts, name: str = "") -> None:
        module = name or parts.architecture.embedding
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, module.rpartition(".")[2]))
        self.rows = Embedding(parts.paper, parts.weight(module), wants_grad=False)
        self.embed_scale = parts.tensor(f"{module}.embed_scale")
        self.wants_grad = parts.wants_input_grads and not name

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The scalar is cast to the weight's dtype each time."""
        hidden = mul(self.rows(input_ids), to(self.embed_scale, self.rows.weight.dtype))
        hidden.trainable = self.wants_grad and hidden.node is None
        return hidden
