"""The adapter that peft adds to a model: every tensor under peft's name, and what is trained.

It owns shapes and counts of LoRA matrices, DoRA magnitudes, saved copies and trained biases.  Which modules are meant
stands in ``targets``; the dtype of an adapter is a fact of the software stack.
Source: peft 0.21.2, ``tuners/lora/layer.py`` (``Linear``, ``Embedding``, ``ParamWrapper``), ``tuners/lora/dora.py``,
``utils/other.py`` (``ModulesToSaveWrapper``), ``tuners/tuners_utils.py`` (``_mark_only_adapters_as_trainable``).
"""

from typing import Literal, NamedTuple

from qmem.architecture.architecture import Architecture, Linear, Parameter, Role
from qmem.architecture.targets import ALL_LINEAR, FUSED_PAIR, Targets, find_targets
from qmem.errors import UsageError
from qmem.job import Job

PREFIX = "base_model.model."
ADAPTER = "default"
"""peft's name of the first adapter."""


class Adapted(NamedTuple):
    """A module that peft wraps.

    Attributes:
        name: the module's name in the model without adapter; for fused experts followed by the parameter's.
        kind: what is wrapped.
        wrapper: the name of the wrapper in the peft model, without ``base_model.model.``.
        rank: of the adapter; twice the job's for a fused gate and up projection.
        out_features, in_features: of the matrix that is adapted; for experts of one expert's.
        n_experts: how many matrices the adapter serves.
        magnitude_shape: of DoRA's magnitude vector, if there is one.
        role: of the weight that is adapted.
    """

    name: str
    kind: Literal["linear", "embedding", "parameter"]
    wrapper: str
    rank: int
    out_features: int
    in_features: int
    n_experts: int
    magnitude_shape: tuple[int, ...] | None
    role: Role

    @property
    def a_shape(self) -> tuple[int, int]:
        """The shape of A: (rank x experts, in)."""
        return (self.rank * self.n_experts, self.in_features)

    @property
    def b_shape(self) -> tuple[int, int]:
        """The shape of B: (out, rank x experts)."""
        return (self.out_features, self.rank * self.n_experts)

    def parameters(self) -> tuple[Parameter, ...]:
        """A, B and the magnitude vector, under peft's names."""
        stem = PREFIX + self.wrapper
        a, b, end = ("lora_embedding_A", "lora_embedding_B", "") if self.kind == "embedding" else _LINEAR_NAMES
        matrices = (
            Parameter(f"{stem}.{a}.{ADAPTER}{end}", self.a_shape, "adapter"),
            Parameter(f"{stem}.{b}.{ADAPTER}{end}", self.b_shape, "adapter"),
        )
        if self.magnitude_shape is None:
            return matrices
        magnitude = Parameter(f"{stem}.lora_magnitude_vector.{ADAPTER}.weight", self.magnitude_shape, "adapter")
        return (*matrices, magnitude)


_LINEAR_NAMES = ("lora_A", "lora_B", ".weight")

NARROW = ("router", "gate")
"""Roles of linears that may be narrower than a rank, which peft does not mind."""


class AdapterPlan(NamedTuple):
    """What a method trains.

    Attributes:
        adapted: the wrapped modules, in the order of the model.
        parameters: the adapter's tensors, in the order of ``adapted``.
        saved: the trained copies of ``modules_to_save``, under peft's names, with the roles of their originals.
        biases: the base model's biases that are trained, under peft's names.
        trainable, total: as peft's ``get_nb_trainable_parameters`` counts them.  (On 4-bit weights it counts packed
            bytes twice, so that a weight with an odd number of elements counts one more there.)
        warnings: sentences for the reader.
    """

    adapted: tuple[Adapted, ...]
    parameters: tuple[Parameter, ...]
    saved: tuple[Parameter, ...]
    biases: tuple[Parameter, ...]
    trainable: int
    total: int
    warnings: tuple[str, ...]


def adapt(architecture: Architecture, job: Job) -> AdapterPlan:
    """The adapter that a job adds; full fine-tuning adds none and trains every parameter.

    Raises:
        UsageError: a target or module to save that matches nothing or cannot be adapted; a rank above the smaller
            side of a matrix; dropout or DoRA on fused experts.
    """
    base = architecture.n_parameters
    if not job.has_adapter:
        return AdapterPlan((), (), (), (), base, base, ())
    targets = find_targets(architecture, job)
    adapted = _adapted(architecture, job, targets)
    parameters = tuple(parameter for module in adapted for parameter in module.parameters())
    saved, biases = _saved(architecture, targets), _biases(architecture, job, adapted, targets)
    added = _count(parameters) + _count(saved)
    warnings = (*_check_ranks(adapted, job), *_experts_left_out(architecture, job, targets))
    return AdapterPlan(adapted, parameters, saved, biases, added + _count(biases), base + added, warnings)


def _count(parameters: tuple[Parameter, ...]) -> int:
    return sum(parameter.numel for parameter in parameters)


def _adapted(architecture: Architecture, job: Job, targets: Targets) -> tuple[Adapted, ...]:
    """In the order of ``named_modules()``; a linear's place is that of its weight, a tied head's is last."""
    linears = {linear.name: linear for linear in architecture.linears}
    found = []
    for parameter in architecture.parameters:
        module, _, word = parameter.name.rpartition(".")
        if module in targets.modules:
            if word == "weight":
                found.append(_adapted_module(parameter, linears.get(module), job))
        elif parameter.name in targets.parameters:
            found.append(_adapted_parameter(parameter, job, targets))
    if architecture.tied_head and architecture.head in targets.modules:
        found.append(_adapted_linear(linears[architecture.head], job))
    return tuple(found)


def _adapted_module(weight: Parameter, linear: Linear | None, job: Job) -> Adapted:
    if linear is not None:
        return _adapted_linear(linear, job)
    rows, width = weight.shape
    magnitude = (width,) if job.dora else None
    return Adapted(weight.module, "embedding", weight.module, job.rank, width, rows, 1, magnitude, weight.role)


def _adapted_linear(linear: Linear, job: Job) -> Adapted:
    n_out, n_in = linear.out_features, linear.in_features
    magnitude = (n_out,) if job.dora else None
    return Adapted(linear.name, "linear", linear.name, job.rank, n_out, n_in, 1, magnitude, linear.role)


def _adapted_parameter(parameter: Parameter, job: Job, targets: Targets) -> Adapted:
    """``ParamWrapper``: wrappers nest where a module has several such parameters, the first innermost."""
    if job.dropout or job.dora:
        what = "dropout" if job.dropout else "DoRA"
        raise UsageError(
            f"peft cannot use {what} on {parameter.name}, an expert or router that is a parameter",
            hint=f"leave {what} out, or target the attention projections only",
        )
    module, _, word = parameter.name.rpartition(".")
    wrapper, rank = module, job.rank
    if word == FUSED_PAIR:
        rank *= 2
        wrapper = f"{module}.base_layer" if f"{module}.down_proj" in targets.parameters else module
    *experts, n_out, n_in = parameter.shape
    n_experts = experts[0] if experts else 1
    return Adapted(parameter.name, "parameter", wrapper, rank, n_out, n_in, n_experts, None, parameter.role)


def _saved(architecture: Architecture, targets: Targets) -> tuple[Parameter, ...]:
    """``ModulesToSaveWrapper`` copies the module; the copy of a tied head has a weight of its own."""
    head = Parameter(f"{architecture.head}.weight", architecture.linears[-1].weight_shape, "head")
    tied = (head,) if architecture.tied_head else ()
    copies = []
    for module in targets.saved:
        inside = [p for p in (*architecture.parameters, *tied) if p.name.startswith(f"{module}.")]
        if not inside:
            raise UsageError(f"modules_to_save names {module}, which has no parameters to train")
        stem = f"{PREFIX}{module}.modules_to_save.{ADAPTER}"
        copies += [Parameter(stem + p.name.removeprefix(module), p.shape, p.role) for p in inside]
    return tuple(copies)


def _biases(
    architecture: Architecture, job: Job, adapted: tuple[Adapted, ...], targets: Targets
) -> tuple[Parameter, ...]:
    """``bias="all"`` trains every bias outside saved modules, ``lora_only`` those of adapted linears."""
    if job.bias == "none":
        return ()
    wrapped = {module.name for module in adapted if module.kind == "linear"}
    frozen = tuple(f"{module}." for module in targets.saved)
    return tuple(
        Parameter(f"{PREFIX}{p.module}{'.base_layer' * (p.module in wrapped)}.bias", p.shape, p.role)
        for p in architecture.parameters
        if p.name.endswith(".bias") and not p.name.startswith(frozen) and (job.bias == "all" or p.module in wrapped)
    )


def _check_ranks(adapted: tuple[Adapted, ...], job: Job) -> tuple[str, ...]:
    """Refuse a rank above a matrix.  Only routers and gates that ``all-linear`` brought in may be narrower."""
    narrow = None
    for module in adapted:
        smaller = min(module.out_features, module.in_features)
        if module.rank <= smaller:
            continue
        if not (_names_all_linears(job) and module.role in NARROW):
            raise UsageError(
                f"rank {module.rank} is above {module.name}, a matrix of {module.out_features} x {module.in_features}",
                hint=f"use a rank of at most {smaller * job.rank // module.rank}, or leave it out of the targets",
            )
        narrow = narrow or module
    if narrow is None:
        return ()
    shape = f"{narrow.out_features} x {narrow.in_features}"
    return (
        f"rank {job.rank} is above {narrow.role}s such as {narrow.name} ({shape}), which all-linear adapts as well",
    )


def _experts_left_out(architecture: Architecture, job: Job, targets: Targets) -> tuple[str, ...]:
    fused = architecture.fused_experts and any(p.role == "expert" for p in architecture.parameters)
    if not fused or targets.parameters or not _names_all_linears(job):
        return ()
    return ("the experts are fused parameters, which all-linear does not reach in this family: they are not adapted",)


def _names_all_linears(job: Job) -> bool:
    return isinstance(job.targets, str) and job.targets.lower() == ALL_LINEAR
