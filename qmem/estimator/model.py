"""The model on paper: load its weights, prepare and adapt it, and put the modules of its family together.

Order matters: tensors are made in the order in which the libraries make them.  Sources: transformers 5.23.0
(modules in ``named_modules`` order), peft 0.21.2 ``utils/other.py`` (``prepare_model_for_kbit_training``),
``tuners/lora/layer.py`` (``update_layer``), ``tuners/tuners_utils.py`` (``cast_adapter_dtype``).
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from qmem.architecture import AdapterPlan, Architecture
from qmem.catalogue.stacks import StackFacts
from qmem.estimator.checkpointing import checkpointing
from qmem.estimator.families import family_options
from qmem.estimator.families.llama import Decoder, DecoderLayer, RMSNorm
from qmem.estimator.linears import Linear, Linear4bit, LoraLinear, LoraLinear4bit, Weight4bit
from qmem.estimator.paper import Module, Paper, PaperTensor, Role, empty, parameter
from qmem.estimator.storage import quantization_shared
from qmem.estimator.tape import Gradients, record
from qmem.job import Job
from qmem.ledger import Kind

_LAYER = re.compile(r"\.layers\.(\d+)\.")

KIND_OF_DTYPE = {"bf16": Kind.WEIGHT_16BIT, "fp16": Kind.WEIGHT_16BIT, "fp32": Kind.WEIGHT_32BIT}


class Program(NamedTuple):
    """What a training step runs: the decoder, the head, and the parameters that are trained, in order."""

    decoder: Decoder
    head: Module
    trainable: list[PaperTensor]


class PaperModel:
    """The tensors of a model by name, as they are loaded, prepared and adapted.

    Attributes:
        tensors: parameters and buffers that are not packed.
        packed: the 4-bit weights, by module.
        adapters: LoRA A and B, by module.
    """

    def __init__(self, paper: Paper, architecture: Architecture, job: Job) -> None:
        self.paper, self.architecture, self.job = paper, architecture, job
        self.tensors: dict[str, PaperTensor] = {}
        self.packed: dict[str, Weight4bit] = {}
        self.adapters: dict[str, tuple[PaperTensor, PaperTensor]] = {}
        self.linears = _by_layer(linear.name for linear in architecture.linears)
        self.norms = _by_layer(p.module for p in architecture.parameters if p.role == "norm")

    def load(self, quantized: frozenset[str]) -> None:
        """Make every parameter in the model's order; the weights of ``quantized`` modules are packed at once."""
        paper, job = self.paper, self.job
        trained = job.method == "full"
        for parameter_ in self.architecture.parameters:
            name, shape = parameter_.name, parameter_.shape
            paper.enter_layer(layer_of(name))
            if parameter_.role == "head":
                self._load_buffers()
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and module in quantized:
                if not self.packed:
                    self._load_shared_tables()
                self.packed[module] = Weight4bit(paper, name, (shape[0], shape[1]), job)
            else:
                self.tensors[name] = parameter(
                    paper, name, shape, job.dtype, KIND_OF_DTYPE[job.dtype], trainable=trained
                )
        paper.enter_layer(None)
        self._load_buffers()

    def _load_shared_tables(self) -> None:
        """Tables that all packed weights share, made with the first of them."""
        for piece in quantization_shared(double_quant=self.job.double_quant):
            self.tensors[piece.name] = parameter(
                self.paper, f"bitsandbytes.{piece.name}", piece.shape, piece.dtype, Kind.QUANT_STATE
            )

    def _load_buffers(self) -> None:
        """The decoder's buffers stand before the head's weight, where there is one."""
        for name, shape, dtype, _ in self.architecture.buffers:
            if name not in self.tensors:
                dtype_ = self.job.dtype if dtype == "model" else dtype
                self.tensors[name] = parameter(self.paper, name, shape, dtype_, Kind.MODULE_BUFFER)

    def prepare_for_kbit_training(self, facts: StackFacts) -> None:
        """Cast what is 16-bit and not packed to fp32, one parameter after the other."""
        for parameter_ in self.architecture.parameters:
            name = parameter_.name
            old = self.tensors.get(name)
            if old is None or old.dtype == "fp32":
                continue
            casts = facts.cast_embeddings if parameter_.role in ("embedding", "head") else facts.cast_norms
            if casts:
                self.paper.enter_layer(layer_of(name))
                self.tensors[name] = parameter(self.paper, name, old.shape, "fp32", Kind.WEIGHT_32BIT)
            del old
        self.paper.enter_layer(None)

    def adapt(self, plan: AdapterPlan, facts: StackFacts) -> None:
        """Wrap the targets: A and B are made in the base's dtype, and all cast to the adapter's dtype at the end."""
        for adapted in plan.adapted:
            module = adapted.name
            self.paper.enter_layer(layer_of(module))
            dtype = self.job.dtype if module in self.packed else self._weight(module).dtype
            a, b = (parameter(self.paper, p.name, p.shape, dtype, Kind.ADAPTER) for p in adapted.parameters())
            self.adapters[module] = (a, b)
            del a, b
        self.paper.enter_layer(None)
        for module in self.adapters:
            self.paper.enter_layer(layer_of(module))
            self.adapters[module] = self._cast_pair(*self.adapters[module], facts.adapter_dtype)
        self.paper.enter_layer(None)

    def _cast_pair(self, a: PaperTensor, b: PaperTensor, dtype: str) -> tuple[PaperTensor, PaperTensor]:
        return self._cast(a, dtype), self._cast(b, dtype)

    def _cast(self, adapter: PaperTensor, dtype: str) -> PaperTensor:
        if adapter.dtype != dtype:
            adapter = parameter(self.paper, adapter.name, adapter.shape, dtype, Kind.ADAPTER)
        adapter.trainable = True
        return adapter

    def _weight(self, module: str) -> PaperTensor:
        """The weight of a module; a tied head has the embedding's."""
        name = f"{module}.weight"
        return self.tensors[name] if name in self.tensors else self.tensors[f"{self.architecture.embedding}.weight"]

    def program(self, facts: StackFacts) -> Program:
        """The family's modules over these tensors."""
        paper, job = self.paper, self.job
        of = family_options(self.architecture.family, self.architecture.config, job.attention)
        # A checkpointed layer needs an input that requires a gradient, even where the embedding is frozen.
        wants_input_grads = job.checkpointing and job.has_adapter
        embedding = Embedding(paper, self._weight(self.architecture.embedding), wants_grad=wants_input_grads)
        layers = [
            DecoderLayer(paper, of, self._layer_modules(index)) for index in range(self.architecture.n_layers)
        ]
        norm = RMSNorm(paper, "norm", self._weight("model.norm"))
        checkpoint = checkpointing(reentrant=facts.reentrant) if job.checkpointing else None
        decoder = Decoder(paper, of, embedding, layers, norm, checkpoint=checkpoint)
        head = self._linear(self.architecture.head, "lm_head", kind=Kind.LOGITS)
        return Program(decoder, head, self._trainable())

    def _layer_modules(self, index: int) -> dict[str, Module]:
        prefix = f"model.layers.{index}."
        modules: dict[str, Module] = {}
        for linear in self.linears[index]:
            role = linear.removeprefix(prefix)
            modules[role] = self._linear(linear, role)
        for norm in self.norms[index]:
            role = norm.removeprefix(prefix)
            modules[role] = RMSNorm(self.paper, role, self._weight(norm))
        return modules

    def _linear(self, module: str, role: str, kind: Kind = Kind.INTERMEDIATE) -> Module:
        # A 4-bit linear may replace its bias, so the module alone must hold it.
        bias = self.tensors.pop(f"{module}.bias", None) if module in self.packed else self.tensors.get(f"{module}.bias")
        if module in self.packed:
            base_4bit = Linear4bit(self.paper, role, self.packed[module], bias, self.job)
            if module not in self.adapters:
                return base_4bit
            return LoraLinear4bit(base_4bit, *self.adapters[module], self.job.dropout)
        base = Linear(self.paper, role, self._weight(module), bias, kind)
        return LoraLinear(base, *self.adapters[module], self.job.dropout) if module in self.adapters else base

    def _trainable(self) -> list[PaperTensor]:
        if self.job.method == "full":
            return [tensor for tensor in self.tensors.values() if tensor.trainable]
        return [tensor for pair in self.adapters.values() for tensor in pair]


def _by_layer(modules: Iterable[str]) -> dict[int | None, list[str]]:
    layers: dict[int | None, list[str]] = {}
    for module in modules:
        layers.setdefault(layer_of(module), []).append(module)
    return layers


class Embedding(Module):
    """``torch.nn.Embedding``; ``wants_grad`` is the hook of ``enable_input_require_grads``."""

    def __init__(self, paper: Paper, weight: PaperTensor, *, wants_grad: bool) -> None:
        super().__init__(paper, Role(Kind.INTERMEDIATE, "embed_tokens"))
        self.weight, self.wants_grad = weight, wants_grad

    def forward(self, input_ids: PaperTensor) -> PaperTensor:
        """Rows of the weight; backward makes a dense gradient of the weight's size."""
        weight_shape = self.weight.shape

        def backward(g: PaperTensor, _: list[bool], _ids: PaperTensor) -> Gradients:
            return (empty(g.paper, weight_shape, g.dtype),)

        node = record(self.paper, "embedding", [self.weight], backward, (input_ids,))
        hidden = empty(self.paper, (*input_ids.shape, weight_shape[1]), self.weight.dtype, node)
        hidden.trainable = self.wants_grad and node is None
        return hidden


def trained_parameters(
    architecture: Architecture, plan: AdapterPlan, facts: StackFacts, job: Job
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of every parameter that the optimizer gets, in its order."""
    trained, dtype = (plan.parameters, facts.adapter_dtype) if job.has_adapter else (architecture.parameters, job.dtype)
    return ((parameter_.name, parameter_.shape, dtype) for parameter_ in trained)


def layer_of(name: str) -> int | None:
    """The number of the decoder layer that a tensor or module belongs to."""
    match = _LAYER.search(name + ".")
    return int(match[1]) if match else None
