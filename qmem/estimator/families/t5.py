"""The step of a T5, line by line: an encoder, a decoder that looks at it, and learned biases of relative positions.

Source and target have as many tokens as the job's sequence, and every target token is labelled.  Its dropouts run in
training, whatever the adapter's.  Source: transformers 5.23.0 ``models/t5/modeling_t5.py``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qmem.architecture.families.t5 import activation_of
from qmem.errors import UnsupportedError
from qmem.estimator.activations import Activation, activation
from qmem.estimator.attention import attend_with_bias
from qmem.estimator.checkpointing import Checkpoint, reentrant_checkpoint
from qmem.estimator.families.llama import split_heads
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.linears import LoraLinear
from qmem.estimator.loss import cross_entropy_loss
from qmem.estimator.masks import causal_mask, no_mask
from qmem.estimator.norms import T5LayerNorm
from qmem.estimator.operations import add, dropped, mul, scale, swap_heads, to, view
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty
from qmem.estimator.position_bias import relative_position_bias, zero_position_bias
from qmem.estimator.slicing import cached
from qmem.ledger import Kind

Biased = tuple[PaperTensor, PaperTensor, PaperTensor | None]
"""Hidden states, the bias of positions, and eager attention's weights."""


class T5Options(NamedTuple):
    """What a T5 decides.

    Attributes:
        n_heads, head_dim: the shapes of attention.
        gated: the MLP has a gate.
        scales: the decoder's result is scaled before the head (the first T5, not Flan-T5).
        dropout: probability, of all its dropouts.
        checkpoints: layers are checkpointed, so the zeros that stand for a missing bias require a gradient.
        caches: the decoder keeps keys and values: its config is its own, and the Trainer does not reach it.
    """

    n_heads: int
    head_dim: int
    gated: bool
    scales: bool
    dropout: float
    activation: Activation
    attention: str
    checkpoints: bool
    caches: bool


def build(parts: Parts) -> CausalLM:
    """A T5 with its language model's head."""
    config = parts.config
    if config["num_layers"] != config["num_decoder_layers"]:
        raise UnsupportedError("an encoder and a decoder of different depth are not modelled yet")
    if parts.checkpoint is reentrant_checkpoint:
        raise UnsupportedError("reentrant checkpointing of a T5 is not modelled yet", hint="leave reentrant out")
    gated, act = activation_of(config["feed_forward_proj"])
    of = T5Options(
        n_heads=config["num_heads"],
        head_dim=config["d_kv"],
        gated=gated,
        scales=config["tie_word_embeddings"],
        dropout=config["dropout_rate"],
        activation=activation(act),
        attention=parts.attention,
        checkpoints=parts.checkpoint is not None,
        caches=parts.under_trainer and parts.checkpoint is None,
    )
    encoder_decoder = EncoderDecoder(parts, of)
    return CausalLM(encoder_decoder, Head(parts, of), cross_entropy_loss, encoder_decoder.returned)


class Attention(Module):
    """``T5Attention``, over its own tokens or over those of an encoder."""

    def __init__(self, paper: Paper, of: T5Options, modules: Mapping[str, Module], name: str, *, causal: bool) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, name))
        self.of, self.causal = of, causal
        self.q, self.k, self.v, self.o = (modules[f"{name}.{projection}"] for projection in "qkvo")
        self.relative_attention_bias = modules.get(f"{name}.relative_attention_bias")

    def forward(
        self,
        hidden_states: PaperTensor,
        mask: PaperTensor | None,
        key_value_states: PaperTensor | None,
        position_bias: PaperTensor | None,
    ) -> Biased:
        """Project, make the bias if there is none yet, attend, project."""
        of = self.of
        b, s, _ = hidden_states.shape
        query_states = swap_heads(split_heads(self.q(hidden_states), of.n_heads))
        current_states = hidden_states if key_value_states is None else key_value_states
        key_states = swap_heads(split_heads(self.k(current_states), of.n_heads))
        value_states = swap_heads(split_heads(self.v(current_states), of.n_heads))
        if of.caches and (self.causal or key_value_states is not None):
            key_states = cached(key_states)
            value_states = cached(value_states)
        if position_bias is None:
            position_bias = self._position_bias(query_states, key_states)
        attn_output, attn_weights = attend_with_bias(
            query_states,
            key_states,
            value_states,
            mask,
            position_bias,
            attention=of.attention,
            drop=of.dropout,
            causal=self.causal,
        )
        attn_output = view(attn_output, (b, s, of.n_heads * of.head_dim))
        attn_output = self.o(attn_output)
        return attn_output, position_bias, attn_weights

    def _position_bias(self, q: PaperTensor, k: PaperTensor) -> PaperTensor:
        if self.relative_attention_bias is None:
            return zero_position_bias(q, k, trainable=self.of.checkpoints)
        return relative_position_bias(self.relative_attention_bias, q.shape[2], k.shape[2], causal=self.causal)


class AttentionLayer(Module):
    """``T5LayerSelfAttention`` and ``T5LayerCrossAttention``."""

    def __init__(self, paper: Paper, of: T5Options, modules: Mapping[str, Module], name: str, *, causal: bool) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, name))
        self.of = of
        inner = {key.removeprefix(f"{name}."): module for key, module in modules.items()}
        of_what = "EncDecAttention" if "EncDecAttention.q" in inner and name == "layer.1" else "SelfAttention"
        self.attention = Attention(paper, of, inner, of_what, causal=causal)
        self.layer_norm = modules[f"{name}.layer_norm"]

    def forward(
        self,
        hidden_states: PaperTensor,
        mask: PaperTensor | None,
        key_value_states: PaperTensor | None,
        position_bias: PaperTensor | None,
    ) -> Biased:
        """Norm, attention, dropout, residual."""
        normed_hidden_states = self.layer_norm(hidden_states)
        attention_output, position_bias, attn_weights = self.attention(
            normed_hidden_states, mask, key_value_states, position_bias
        )
        attention_output = add(hidden_states, dropped(attention_output, self.of.dropout))
        assert position_bias is not None, "the attention made one"
        return attention_output, position_bias, attn_weights


class FeedForward(Module):
    """``T5LayerFF`` with ``T5DenseActDense`` or ``T5DenseGatedActDense``."""

    def __init__(self, paper: Paper, of: T5Options, modules: Mapping[str, Module], name: str) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, name))
        self.of = of
        dense = f"{name}.DenseReluDense"
        self.wi = [modules[f"{dense}.{word}"] for word in (("wi_0", "wi_1") if of.gated else ("wi",))]
        self.wo = modules[f"{dense}.wo"]
        self.layer_norm = modules[f"{name}.layer_norm"]

    def forward(self, hidden_states: PaperTensor) -> PaperTensor:
        """Norm, MLP, dropout, residual."""
        forwarded_states = self.layer_norm(hidden_states)
        forwarded_states = self._gated(forwarded_states) if self.of.gated else self._plain(forwarded_states)
        hidden_states = add(hidden_states, dropped(forwarded_states, self.of.dropout))
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers

    def _plain(self, hidden_states: PaperTensor) -> PaperTensor:
        hidden_states = self.wi[0](hidden_states)
        hidden_states = self.of.activation(hidden_states)
        hidden_states = dropped(hidden_states, self.of.dropout)
        return self._out(hidden_states)

    def _gated(self, hidden_states: PaperTensor) -> PaperTensor:
        hidden_gelu = self.of.activation(self.wi[0](hidden_states))
        hidden_linear = self.wi[1](hidden_states)
        hidden_states = mul(hidden_gelu, hidden_linear)
        hidden_states = dropped(hidden_states, self.of.dropout)
        return self._out(hidden_states)

    def _out(self, hidden_states: PaperTensor) -> PaperTensor:
        """``wo`` gets what it is given in the dtype of its own weight."""
        wo = self.wo.base if isinstance(self.wo, LoraLinear) else self.wo
        hidden_states = to(hidden_states, wo.weight.dtype)  # type: ignore[attr-defined]
        hidden_states = self.wo(hidden_states)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers


class Block(Module):
    """``T5Block``: of a decoder if there is an encoder's result to look at."""

    def __init__(self, paper: Paper, of: T5Options, modules: Mapping[str, Module], *, is_decoder: bool) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "block"))
        self.attend = AttentionLayer(paper, of, modules, "layer.0", causal=is_decoder)
        self.cross_attend = AttentionLayer(paper, of, modules, "layer.1", causal=False) if is_decoder else None
        self.feed_forward = FeedForward(paper, of, modules, "layer.2" if is_decoder else "layer.1")

    def forward(
        self,
        hidden_states: PaperTensor,
        mask: PaperTensor | None,
        position_bias: PaperTensor | None,
        encoder_hidden_states: PaperTensor | None,
        encoder_decoder_position_bias: PaperTensor | None,
    ) -> tuple[PaperTensor, PaperTensor, PaperTensor | None]:
        """Attention, attention to the encoder, MLP; eager weights live until the next attention, or the end."""
        if hidden_states.dtype == "fp16":
            raise UnsupportedError("a T5 in fp16, which clamps what is infinite, is not modelled yet")
        hidden_states, self_attn_position_bias, _ = self.attend(hidden_states, mask, None, position_bias)
        cross_attn_position_bias = None
        if self.cross_attend is not None:
            hidden_states, cross_attn_position_bias, _ = self.cross_attend(
                hidden_states, None, encoder_hidden_states, encoder_decoder_position_bias
            )
        hidden_states = self.feed_forward(hidden_states)
        return hidden_states, self_attn_position_bias, cross_attn_position_bias


class Stack(Module):
    """``T5Stack``: an encoder or a decoder."""

    def __init__(self, parts: Parts, of: T5Options, name: str) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, name))
        self.of, self.is_decoder = of, name == "decoder"
        self.embed_tokens = parts.embedding()
        self.blocks = [
            Block(parts.paper, of, _block_modules(parts, f"{name}.block.{index}."), is_decoder=self.is_decoder)
            for index in range(parts.n_layers)
        ]
        self.final_layer_norm = _norm(parts, f"{name}.final_layer_norm")
        self.checkpoint: Checkpoint | None = parts.checkpoint

    def forward(self, input_ids: PaperTensor, encoder_hidden_states: PaperTensor | None) -> PaperTensor:
        """The last hidden state.  ``inputs_embeds`` and both biases are locals and live until this returns."""
        paper, of = self.paper, self.of
        inputs_embeds = self.embed_tokens(input_ids)
        mask = self._mask(inputs_embeds)
        position_bias = encoder_decoder_position_bias = None
        hidden_states = dropped(inputs_embeds, of.dropout)
        for index, block in enumerate(self.blocks):
            paper.enter_layer(index)
            inputs = (hidden_states, mask, position_bias, encoder_hidden_states, encoder_decoder_position_bias)
            outputs: Any = self.checkpoint(block, *inputs) if self.checkpoint else block(*inputs)
            del inputs
            hidden_states, position_bias, encoder_decoder_position_bias = outputs
            del outputs
        paper.enter_layer(None)
        hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = dropped(hidden_states, of.dropout)
        return hidden_states  # noqa: RET504 - the local lives to the end of the frame, as in transformers

    def _mask(self, inputs_embeds: PaperTensor) -> PaperTensor | None:
        b, s, _ = inputs_embeds.shape
        if not self.is_decoder:
            no_mask(self.paper)
            return None
        attention = self.of.attention
        mask = causal_mask(self.paper, b, s, inputs_embeds.dtype, attention=attention, knows_positions=False)
        no_mask(self.paper)
        return mask


def _norm(parts: Parts, module: str) -> Module:
    return T5LayerNorm(parts.paper, module.rpartition(".")[2], parts.weight(module))


def _block_modules(parts: Parts, prefix: str) -> dict[str, Module]:
    """The linears, norms and biases of a block by their names within it."""
    modules: dict[str, Module] = {}
    for name, _, role in parts.architecture.parameters:
        if not name.startswith(prefix):
            continue
        module = name.removesuffix(".weight")
        inner = module.removeprefix(prefix)
        if role == "norm":
            modules[inner] = _norm(parts, module)
        elif role == "position embedding":
            modules[inner] = parts.position_embedding(module)
        else:
            modules[inner] = parts.linear(module, inner)
    return modules


class EncoderDecoder(Module):
    """``T5ForConditionalGeneration`` up to its head: the labels, shifted, are what the decoder reads.

    ``returned`` is the encoder's last hidden state, which the model returns with its logits.
    """

    def __init__(self, parts: Parts, of: T5Options) -> None:
        super().__init__(parts.paper, Role(Kind.INTERMEDIATE, "model"))
        self.encoder, self.decoder = Stack(parts, of, "encoder"), Stack(parts, of, "decoder")
        self.returned: list[PaperTensor] = []

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """The decoder's last hidden state."""
        hidden_states = self.encoder(input_ids, None)
        self.returned.append(hidden_states)
        decoder_input_ids = _shifted(input_ids)
        sequence_output: PaperTensor = self.decoder(decoder_input_ids, hidden_states)
        return sequence_output


def _shifted(labels: PaperTensor) -> PaperTensor:
    """``_shift_right``: one token more in front, one less at the end."""
    paper, (b, s) = labels.paper, labels.shape
    paper.rule = "decoder ids"
    shifted = empty(paper, (b, s), "int64")
    copied = empty(paper, (b, s - 1), "int64")
    del copied
    ignored = empty(paper, (b, s), "bool")
    del ignored
    return shifted


class Head(Module):
    """``lm_head``, after the scaling of the first T5."""

    def __init__(self, parts: Parts, of: T5Options) -> None:
        super().__init__(parts.paper, Role(Kind.LOGITS, "lm_head"))
        self.of = of
        self.lm_head = parts.head()

    def forward(self, sequence_output: PaperTensor) -> PaperTensor:
        """Logits."""
        if self.of.scales:
            sequence_output = scale(sequence_output)
        lm_logits: PaperTensor = self.lm_head(sequence_output)
        return lm_logits
