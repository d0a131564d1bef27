"""The step of a RoBERTa as a masked language model, line by line: norms after each part, attention to all tokens.

Every position is labelled.  Its dropouts run in training, whatever the adapter's.  Source: transformers 5.23.0
``models/roberta/modeling_roberta.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation, activation, gelu
from qmem.estimator.attention import attend
from qmem.estimator.checkpointing import Checkpoint
from qmem.estimator.families.llama import split_heads
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.linears import Linear
from qmem.estimator.loss import cross_entropy_loss
from qmem.estimator.masks import no_mask
from qmem.estimator.operations import add, dropped, swap_heads, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.ledger import Kind

EMBEDDINGS = "roberta.embeddings"


class RobertaOptions(NamedTuple):
    """What a RoBERTa decides: heads, the probabilities of its dropouts, the activation, the attention."""

    n_heads: int
    hidden_dropout: float
    attention_dropout: float
    activation: Activation
    attention: str


def build(parts: Parts) -> CausalLM:
    """A RoBERTa with its masked language model's head."""
    config = parts.config
    of = RobertaOptions(
        config["num_attention_heads"],
        config["hidden_dropout_prob"],
        config["attention_probs_dropout_prob"],
        activation(config["hidden_act"]),
        parts.attention,
    )
    layers = [Layer(parts.paper, of, _layer_modules(parts, index)) for index in range(parts.n_layers)]
    return CausalLM(Encoder(parts, of, layers), Head(parts), cross_entropy_loss)


def _layer_modules(parts: Parts, index: int) -> dict[str, Module]:
    modules = parts.layer_linears(index)
    for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
        modules[norm] = parts.layer_norm(f"roberta.encoder.layer.{index}.{norm}", norm)
    return modules


class Embeddings(Module):
    """``RobertaEmbeddings``: tokens, their types and their positions, which are counted from the ids."""

    def __init__(self, parts: Parts, of: RobertaOptions) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "embeddings"))
        self.of = of
        self.word_embeddings = parts.embedding()
        self.token_type_embeddings = parts.position_embedding(f"{EMBEDDINGS}.token_type_embeddings")
        self.position_embeddings = parts.position_embedding(f"{EMBEDDINGS}.position_embeddings")
        self.norm = parts.layer_norm(f"{EMBEDDINGS}.LayerNorm", "LayerNorm")

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The three embeddings live until this returns."""
        paper = self.paper
        positions = _positions(paper, input_ids.shape)
        paper.rule = "token types"
        types = empty(paper, input_ids.shape, "int64")
        inputs_embeds = self.word_embeddings(input_ids)
        token_type_embeddings = self.token_type_embeddings(types)
        embeddings = add(inputs_embeds, token_type_embeddings)
        position_embeddings = self.position_embeddings(positions)
        embeddings = add(embeddings, position_embeddings)
        embeddings = self.norm(embeddings)
        embeddings = dropped(embeddings, self.of.hidden_dropout)
        return embeddings  # noqa: RET504 - the local lives to the end of the frame, as in transformers


def _positions(paper: Paper, shape: tuple[int, ...]) -> PaperTensor:
    """``create_position_ids_from_input_ids``: a running count of what is not padding."""
    paper.rule = "position ids"
    differs = empty(paper, shape, "bool")
    mask = empty(paper, shape, "int32")
    del differs
    counted = empty(paper, shape, "int64")
    cast = empty(paper, shape, "int32")
    del counted
    shifted = empty(paper, shape, "int32")
    del cast
    incremental_indices = empty(paper, shape, "int32")
    del shifted
    long = empty(paper, shape, "int64")
    positions = empty(paper, shape, "int64")
    del long, incremental_indices, mask
    return positions


class SelfAttention(Module):
    """``RobertaSelfAttention``."""

    def __init__(self, paper: Paper, of: RobertaOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "attention.self"))
        self.of = of
        self.query, self.key, self.value = (modules[f"attention.self.{name}"] for name in ("query", "key", "value"))

    def forward(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor | None]:
        """Project and attend to all tokens.  Eager attention also returns its weights."""
        of = self.of
        query_layer = swap_heads(split_heads(self.query(hidden_states), of.n_heads))
        key_layer = swap_heads(split_heads(self.key(hidden_states), of.n_heads))
        value_layer = swap_heads(split_heads(self.value(hidden_states), of.n_heads))
        attn_output, attn_weights = attend(
            query_layer,
            key_layer,
            value_layer,
            None,
            attention=of.attention,
            drop=of.attention_dropout,
            fp32=False,
            recast=False,
            causal=False,
        )
        attn_output = view(attn_output, hidden_states.shape)
        return attn_output, attn_weights


class Output(Module):
    """``RobertaSelfOutput`` and ``RobertaOutput``: a linear, dropout, and the norm of the sum with the input."""

    def __init__(self, paper: Paper, of: RobertaOptions, modules: Mapping[str, Module], name: str) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, name))
        self.of = of
        self.dense, self.norm = modules[f"{name}.dense"], modules[f"{name}.LayerNorm"]

    def forward(self, hidden_states: PaperTensor, input_tensor: PaperTensor) -> PaperTensor:
        """``LayerNorm(dropout(dense(x)) + input)``."""
        hidden_states = self.dense(hidden_states)
        hidden_states = dropped(hidden_states, self.of.hidden_dropout)
        hidden_states = self.norm(add(hidden_states, input_tensor))
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Layer(Module):
    """``RobertaLayer``."""

    def __init__(self, paper: Paper, of: RobertaOptions, modules: Mapping[str, Module]) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "layer"))
        self.of = of
        self.self_attention = SelfAttention(paper, of, modules)
        self.attention_output = Output(paper, of, modules, "attention.output")
        self.intermediate = modules["intermediate.dense"]
        self.output = Output(paper, of, modules, "output")

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """Attention, whose weights live until the layer returns, then the MLP."""
        attention_output, _ = self._attention(hidden_states)
        layer_output = self._feed_forward_chunk(attention_output)
        return layer_output  # noqa: RET504 - the local lives to the end of the frame, as in transformers

    def _attention(self, hidden_states: PaperTensor) -> tuple[PaperTensor, PaperTensor | None]:
        attention_output, attn_weights = self.self_attention(hidden_states)
        attention_output = self.attention_output(attention_output, hidden_states)
        return attention_output, attn_weights

    def _feed_forward_chunk(self, attention_output: PaperTensor) -> PaperTensor:
        intermediate_output = self._intermediate(attention_output)
        layer_output: PaperTensor = self.output(intermediate_output, attention_output)
        return layer_output

    def _intermediate(self, hidden_states: PaperTensor) -> PaperTensor:
        hidden_states = self.intermediate(hidden_states)
        return self.of.activation(hidden_states)


class Encoder(Module):
    """``RobertaModel`` without pooler: embeddings, mask, layers."""

    def __init__(self, parts: Parts, of: RobertaOptions, layers: list[Layer]) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.of, self.layers = of, layers
        self.embeddings = Embeddings(parts, of)
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The last hidden state.  ``embedding_output`` is a local and lives until this returns."""
        paper = self.paper
        embedding_output = self.embeddings(input_ids)
        no_mask(paper)
        hidden_states: PaperTensor = embedding_output
        for index, layer in enumerate(self.layers):
            paper.enter_layer(index)
            hidden_states = self.checkpoint(layer, hidden_states) if self.checkpoint else layer(hidden_states)
        paper.enter_layer(None)
        return hidden_states


class Head(Module):
    """``RobertaLMHead``: a linear, gelu, a norm, and the output embedding with a bias of its own."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.paper, Role(Kind.LOGITS, "lm_head"))
        head = parts.architecture.head
        weight = parts.weight(head)
        if parts.architecture.tied_head and weight is not parts.weight(parts.architecture.embedding):
            raise UnsupportedError(f"training {head} in modules_to_save is not modelled yet for a RoBERTa")
        self.dense = parts.linear("lm_head.dense", "lm_head.dense")
        self.layer_norm = parts.layer_norm("lm_head.layer_norm", "lm_head.layer_norm")
        bias = "lm_head.bias" if parts.architecture.tied_head else f"{head}.bias"
        self.decoder = Linear(parts.paper, "lm_head", weight, parts.tensor(bias), Kind.LOGITS)

    def forward(self, features: PaperTensor) -> PaperTensor:
        """Logits."""
        x = self.dense(features)
        x = gelu(x)
        x = self.layer_norm(x)
        logits: PaperTensor = self.decoder(x)
        return logits
