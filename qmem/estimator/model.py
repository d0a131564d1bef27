"""The model on paper: load its weights, prepare and adapt it, and put the modules of its family together.

Order matters: tensors are made in the order in which the libraries make them.  Sources: transformers 5.23.0
(modules in ``named_modules`` order), peft 0.21.2 ``utils/other.py`` (``prepare_model_for_kbit_training``),
``tuners/lora/layer.py`` (``update_layer``), ``tuners/tuners_utils.py`` (``cast_adapter_dtype``).
"""

import re
from collections.abc import Iterable, Iterator
from math import sqrt
from typing import NamedTuple

from qmem.architecture import EMBEDDINGS, AdapterPlan, Architecture
from qmem.catalogue.stacks import StackFacts
from qmem.errors import UnsupportedError
from qmem.estimator.checkpointing import checkpointing
from qmem.estimator.dora import Adapter, initial_magnitude
from qmem.estimator.families import build_family
from qmem.estimator.families.parts import Parts
from qmem.estimator.fused_adapters import Cache, FusedParameter
from qmem.estimator.fused_head import Head
from qmem.estimator.int8 import Weight8bit
from qmem.estimator.linears import Conv1D, Linear, Linear4bit, Linear8bit, LoraLinear, LoraQuantizedLinear, MatmulLinear
from qmem.estimator.loss import Loss
from qmem.estimator.paper import Module, Paper, PaperTensor, parameter
from qmem.estimator.quantized import Weight4bit
from qmem.job import Job
from qmem.ledger import Kind

_LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")

SFT_DTYPE = "bf16"
"""What SFTTrainer casts to.  Source: trl 1.16.0 ``trainer/sft_trainer.py`` (``__init__``)."""

KIND_OF_DTYPE = {"bf16": Kind.WEIGHT_16BIT, "fp16": Kind.WEIGHT_16BIT, "fp32": Kind.WEIGHT_32BIT}


class Exempt(NamedTuple):
    """Names of parameters that transformers' Trainer treats in another way.

    Attributes:
        embeddings: weights whose optimizer state is never 8-bit.
        norms: parameters of layer norms, which decay no weight.
    """

    embeddings: frozenset[str]
    norms: frozenset[str]


NORMS_KNOWN_BEFORE = ("gpt_bigcode", "llama")
"""Families whose norms are of a class in ``ALL_LAYERNORM_LAYERS`` of transformers 4.48.1: ``nn.LayerNorm``, Llama's."""


class Program(NamedTuple):
    """What a training step runs: the decoder, the head, the loss, and the parameters that are trained, in order.

    ``others`` is what the decoder returns besides, for the time of its forward.
    """

    decoder: Module
    head: Module
    loss: Loss
    others: list[PaperTensor]
    slices_hidden: bool
    trainable: list[PaperTensor]
    exempt: Exempt


class PaperModel:
    """The tensors of a model by name, as they are loaded, prepared and adapted.

    Attributes:
        tensors: parameters and buffers that are not packed.
        packed: the 4-bit and int8 weights, by module.
        adapters: LoRA A and B, and DoRA's magnitude, by module.
        saved: the trained copies of whole modules (``modules_to_save``), by module.
    """

    def __init__(self, paper: Paper, architecture: Architecture, job: Job) -> None:
        self.paper, self.architecture, self.job = paper, architecture, job
        self.tensors: dict[str, PaperTensor] = {}
        self.packed: dict[str, Weight4bit | Weight8bit] = {}
        self.adapters: dict[str, Adapter] = {}
        self.saved: dict[str, PaperTensor] = {}
        self.linears = _by_layer(linear.name for linear in architecture.linears)
        self.conv1d = frozenset(linear.name for linear in architecture.linears if linear.conv1d)
        self.derived = frozenset(linear.name for linear in architecture.linears if not linear.plain)

    def load(self, quantized: frozenset[str]) -> None:
        """Make every parameter in the model's order; the weights of ``quantized`` modules are packed at once."""
        paper, job = self.paper, self.job
        trained = job.method == "full"
        holders = {buffer.name.rpartition(".")[0] for buffer in self.architecture.buffers}
        for parameter_ in self.architecture.parameters:
            name, shape = parameter_.name, parameter_.shape
            paper.enter_layer(layer_of(name))
            for holder in sorted(_parents(parameter_.module) & holders):
                self._load_buffers(holder)
            if parameter_.role == "head":
                self._load_buffers()
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and module in quantized:
                # A ``Conv1D`` is replaced by a linear, whose weight lies the other way round.
                n_out, n_in = shape[::-1] if module in self.conv1d else shape
                self.packed[module] = self._pack(name, (n_out, n_in))
            else:
                self.tensors[name] = parameter(
                    paper, name, shape, job.dtype, KIND_OF_DTYPE[job.dtype], trainable=trained
                )
            if parameter_.role in ("embedding", "layer embedding", "router"):
                self._load_buffers(module)
        paper.enter_layer(None)
        self._load_buffers()

    def _pack(self, name: str, shape: tuple[int, int]) -> Weight4bit | Weight8bit:
        if self.job.effective_quant == "int8":
            return Weight8bit(self.paper, name, shape, self.job)
        return Weight4bit(self.paper, name, shape, self.job, shares_tables=not self.packed)

    def _load_buffers(self, of: str | None = None) -> None:
        """Those of one module, or all that are not there yet.

        Those of the embedding and of routers follow the weight, those of a module that holds others stand before their
        parameters, and the decoder's before the head's weight.
        """
        for name, shape, dtype, _ in self.architecture.buffers:
            if of is not None and name.rpartition(".")[0] != of:
                continue
            if self.paper.older.one_rotary_buffer and name.endswith(".original_inv_freq"):
                continue
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
        """Wrap the targets: A and B are made in the base's dtype, and all cast to the adapter's dtype at the end.

        Parameters are wrapped when all modules are, but stand in their place in the model.
        """
        for adapted in sorted(plan.adapted, key=lambda adapted: adapted.kind == "parameter"):
            module = adapted.name
            self.paper.enter_layer(layer_of(module))
            dtype = self._dtype_of_new_adapter(module)
            a_name, b_name, *magnitude_names = (p.name for p in adapted.parameters())
            a = parameter(self.paper, a_name, adapted.a_shape, dtype, Kind.ADAPTER)
            b = parameter(self.paper, b_name, adapted.b_shape, dtype, Kind.ADAPTER)
            magnitude = self._magnitude(module, magnitude_names[0], a, b) if magnitude_names else None
            self.adapters[module] = Adapter(a, b, magnitude)
            del a, b, magnitude
        self.adapters = {adapted.name: self.adapters[adapted.name] for adapted in plan.adapted}
        self.paper.enter_layer(None)
        self._copy_saved(plan)
        self._cast_trained(facts)

    def _cast_trained(self, facts: StackFacts) -> None:
        """Peft's cast to the adapter's dtype; or to fp32, from where SFTTrainer casts all but DoRA's magnitudes."""
        if not facts.sft_cast:
            self._cast_adapters(Adapter._fields, facts.adapter_dtype)
            return
        self._cast_adapters(Adapter._fields, "fp32")
        self._cast_adapters(("a", "b"), SFT_DTYPE)
        for module, copy in self.saved.items():
            if copy.dtype != SFT_DTYPE:
                cast = parameter(self.paper, copy.name, copy.shape, SFT_DTYPE, Kind.ADAPTER, trainable=True)
                self.saved[module] = cast
        self._cast_adapters(("a", "b"), facts.adapter_dtype)

    def _cast_adapters(self, fields: tuple[str, ...], dtype: str) -> None:
        for module in self.adapters:
            self.paper.enter_layer(layer_of(module))
            self._cast_adapter(module, fields, dtype)
        self.paper.enter_layer(None)

    def _copy_saved(self, plan: AdapterPlan) -> None:
        """``ModulesToSaveWrapper``: a copy of the weight as it is by now, which no later cast touches."""
        for copy in sorted(plan.saved, key=lambda copy: copy.role == "head"):
            module = self.architecture.head if copy.role == "head" else self.architecture.embedding
            dtype = self._weight(module).dtype
            self.saved[module] = parameter(self.paper, copy.name, copy.shape, dtype, Kind.ADAPTER, trainable=True)
            self._copy_buffers(module, copy.name.rpartition(".")[0])

    def _copy_buffers(self, module: str, copy: str) -> None:
        """Those of a module that is copied, such as the scale of Gemma's embedding."""
        for name, shape, _, _ in self.architecture.buffers:
            holder, _, word = name.rpartition(".")
            if holder == module:
                dtype = self.tensors[name].dtype
                self.tensors[f"{copy}.{word}"] = parameter(
                    self.paper, f"{copy}.{word}", shape, dtype, Kind.MODULE_BUFFER
                )

    def _magnitude(self, module: str, name: str, a: PaperTensor, b: PaperTensor) -> PaperTensor:
        if module in self.conv1d and module not in self.packed:
            raise UnsupportedError(f"DoRA on {module}, a Conv1D in {self.job.dtype}, is not modelled yet")
        weight = self.packed[module] if module in self.packed else self._weight(module)
        assert not isinstance(weight, Weight8bit), "DoRA on an int8 base is refused"
        return initial_magnitude(name, weight, self.tensors.get(f"{module}.bias"), a, b)

    def _dtype_of_new_adapter(self, module: str) -> str:
        """That of the base weight, but an int8 base leaves adapters in fp32.

        Source: ``_move_adapter_to_device_of_base_layer``.
        """
        packed = self.packed.get(module)
        if packed is None:
            return (self.tensors.get(module) or self._weight(module)).dtype
        if self.paper.older.adapters_follow_storage:
            return "fp32" if self.job.quant_storage == "uint8" else self.job.quant_storage
        return self.job.dtype if isinstance(packed, Weight4bit) else "fp32"

    def _cast_adapter(self, module: str, fields: tuple[str, ...], dtype: str) -> None:
        for field in fields:
            old = getattr(self.adapters[module], field)
            if old is not None:
                self.adapters[module] = self.adapters[module]._replace(**{field: self._cast(old, dtype)})
            del old

    def _cast(self, adapter: PaperTensor, dtype: str) -> PaperTensor:
        if adapter.dtype != dtype:
            adapter = parameter(self.paper, adapter.name, adapter.shape, dtype, Kind.ADAPTER)
        adapter.trainable = True
        return adapter

    def _weight(self, module: str) -> PaperTensor:
        """The weight of a module; a tied head has the embedding's."""
        name = f"{module}.weight"
        return self.tensors[name] if name in self.tensors else self.tensors[f"{self.architecture.embedding}.weight"]

    def _weight_in_use(self, module: str) -> PaperTensor:
        """The trained copy of a module's weight, if there is one."""
        return self.saved[module] if module in self.saved else self._weight(module)

    def program(self, facts: StackFacts) -> Program:
        """The family's modules over these tensors."""
        job, architecture = self.job, self.architecture
        parts = Parts(
            paper=self.paper,
            architecture=architecture,
            attention=job.attention,
            checkpoint=checkpointing(reentrant=facts.reentrant) if job.checkpointing else None,
            # A checkpointed layer needs an input that requires a gradient, even where the embedding is frozen.
            wants_input_grads=job.checkpointing and job.has_adapter and not _leaves_input_frozen(facts),
            under_trainer=facts.trainer_loop,
            linear=self._linear,
            weight=self._weight_in_use,
            tensor=self.tensors.__getitem__,
            linears_of=self.linears,
            fused=self._fused,
        )
        decoder, head, loss, others, slices_hidden = build_family(parts)
        return Program(
            decoder, head, loss, [] if others is None else others, slices_hidden, self._trainable(), self._exempt()
        )  # fmt: skip

    def _exempt(self) -> Exempt:
        embeddings, norms = (
            frozenset(parameter_.name for parameter_ in self.architecture.parameters if parameter_.role in roles)
            for roles in (EMBEDDINGS, ("norm",))
        )
        if self.paper.older.decays_most_norms and self.architecture.family not in NORMS_KNOWN_BEFORE:
            norms = frozenset()
        saved = self.saved.get(self.architecture.embedding)
        return Exempt(embeddings if saved is None else embeddings | {saved.name}, norms)

    def head_factors(self) -> Head:
        """What a fused head multiplies by: the head's weight and bias as they are by now."""
        module = self.architecture.head
        return Head(self._weight_in_use(module), self.tensors.get(f"{module}.bias"))

    def _linear(self, module: str, role: str, kind: Kind = Kind.INTERMEDIATE) -> Module:
        packed, adapter = self.packed.get(module), self.adapters.get(module)
        if packed is None:
            of = Conv1D if module in self.conv1d else MatmulLinear if module in self.derived else Linear
            linear = of(self.paper, role, self._weight_in_use(module), self.tensors.get(f"{module}.bias"), kind)
            return LoraLinear(linear, adapter, self.job.dropout) if adapter else linear
        # A quantized linear may replace its bias, so the module alone must hold it.
        bias = self.tensors.pop(f"{module}.bias", None)
        base: Linear4bit | Linear8bit
        if isinstance(packed, Weight4bit):
            base = Linear4bit(self.paper, role, packed, bias, self.job)
        else:
            base = Linear8bit(self.paper, role, packed, bias)
        return LoraQuantizedLinear(base, adapter, self.job.dropout) if adapter else base

    def _fused(self, name: str, cache: Cache) -> FusedParameter:
        weight, adapter = self.tensors[name], self.adapters.get(name)
        scaling = _scaling(weight, adapter, self.job) if adapter else 1.0
        return FusedParameter(weight, adapter, scaling, cache)

    def _trainable(self) -> list[PaperTensor]:
        """What the optimizer gets, in the order of the model's parameters."""
        if self.job.method == "full":
            return [tensor for tensor in self.tensors.values() if tensor.trainable]
        adapters = [tensor for adapter in self.adapters.values() for tensor in adapter if tensor is not None]
        first = [copy for module, copy in self.saved.items() if module == self.architecture.embedding]
        last = [copy for module, copy in self.saved.items() if module == self.architecture.head]
        return first + adapters + last


def _leaves_input_frozen(facts: StackFacts) -> bool:
    """Older peft asks for the input's gradient in the k-bit preparation, and for reentrant checkpointing alone."""
    return facts.older.input_grads_for_reentrant and facts.kbit_preparation and not facts.reentrant


def _scaling(weight: PaperTensor, adapter: Adapter, job: Job) -> float:
    """What the product of a parameter's adapter is multiplied by; a fused pair has twice the rank and the alpha."""
    n_experts = weight.shape[0] if len(weight.shape) > 2 else 1
    rank = adapter.a.shape[0] // n_experts
    alpha = job.alpha * rank / job.rank
    return alpha / (sqrt(rank) if job.rslora else rank)


def _parents(module: str) -> set[str]:
    """The modules that a module lies in."""
    words = module.split(".")
    return {".".join(words[:n]) for n in range(1, len(words))}


def _by_layer(modules: Iterable[str]) -> dict[int | None, list[str]]:
    layers: dict[int | None, list[str]] = {}
    for module in modules:
        layers.setdefault(layer_of(module), []).append(module)
    return layers


class Trained(NamedTuple):
    """A parameter that the optimizer gets; ``in_embedding`` ones are exempt from 8-bit state under the Trainer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    in_embedding: bool


def trained_parameters(architecture: Architecture, plan: AdapterPlan, facts: StackFacts, job: Job) -> Iterator[Trained]:
    """Every parameter that the optimizer gets: of the adapter and of saved modules, or all."""
    saved_dtype = SFT_DTYPE if facts.sft_cast else "fp32" if facts.cast_embeddings else job.dtype
    trained = [(parameter_, _adapter_dtype(parameter_.name, facts)) for parameter_ in plan.parameters]
    trained += [(parameter_, saved_dtype) for parameter_ in plan.saved]
    if not job.has_adapter:
        trained = [(parameter_, job.dtype) for parameter_ in architecture.parameters]
    for parameter_, dtype in trained:
        yield Trained(parameter_.name, parameter_.shape, dtype, parameter_.role in EMBEDDINGS)


def _adapter_dtype(name: str, facts: StackFacts) -> str:
    return "fp32" if facts.sft_cast and "lora_magnitude_vector" in name else facts.adapter_dtype


def layer_of(name: str) -> int | None:
    """The number of the decoder layer that a tensor or module belongs to."""
    match = _LAYER.search(name + ".")
    return int(match[1]) if match else None
