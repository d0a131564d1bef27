"""One job from loading to the traced step, in the worker.

It owns the order of things; building, preparing, looping and tracing are others'.
"""

from collections.abc import Callable
from typing import Any

from qmem.architecture import Architecture, describe
from qmem.catalogue import find_model
from qmem.catalogue.stacks import StackFacts, resolve_stack
from qmem.profiler.build import build_on_device, check_attention
from qmem.profiler.device import DeviceCounters
from qmem.profiler.head import HeadPlace, head_of
from qmem.profiler.meter import Meter, active_blocks
from qmem.profiler.names import model_tensors
from qmem.profiler.out_of_memory import is_out_of_memory
from qmem.profiler.outliers import assume_no_outliers
from qmem.profiler.prepare import add_adapter, prepare_for_kbit_training
from qmem.profiler.protocol import Block, Described, Event, Request, Shortage, Traced, Workspaces
from qmem.profiler.routing import assume_balanced_routing
from qmem.profiler.stacks import Run, run_stack
from qmem.profiler.tracing import Tracer


def run_job(request: Request, device: DeviceCounters, tell: Callable[[Event], None], verdict: Any) -> None:
    """Load, prepare, run the clean steps and the traced one, or as far as memory reaches.

    ``verdict`` is the readback guard's; ``None`` on a real GPU.
    """
    config = find_model(request.job.model).config
    meter = Meter(tell, device, describe(config).n_layers)
    tracer = Tracer(meter)
    _watch_end_of_memory(meter)
    if request.history:
        tracer.start()
    try:
        _run_phases(request, config, meter, tracer, verdict)
    except Exception as error:
        if is_out_of_memory(error):
            meter.cut_off()
            _tell_owners(tracer, tell)
        raise
    _tell_owners(tracer, tell)


def _watch_end_of_memory(meter: Meter) -> None:
    """Have the counters read where torch's allocator finds no more memory, before anything is let go."""
    import torch  # noqa: PLC0415

    def see(_device: int, asked: int, _total: int, free: int) -> None:
        meter.cut_off(Shortage(asked, free))

    bindings: Any = torch._C  # noqa: SLF001
    bindings._cuda_attach_out_of_memory_observer(see)  # noqa: SLF001


def _tell_owners(tracer: Tracer, tell: Callable[[Event], None]) -> None:
    """What can be said only at the end: which blocks are workspaces, and what was alive when."""
    if tracer.recording is not None:
        tracer.stop()
    workspaces = clear_workspaces()
    tell(Workspaces(addresses=tuple(workspaces)))
    if tracer.recording is not None:
        tell(Traced(phases=tracer.phases(workspaces)))


def _run_phases(request: Request, config: dict[str, Any], meter: Meter, tracer: Tracer, verdict: Any) -> None:
    """The phases of the job, from the first to the last."""
    import torch  # noqa: PLC0415

    job = request.job
    architecture, facts = describe(config), resolve_stack(job)
    torch.manual_seed(0)
    meter.enter("load", 0)
    models: list[Any] = []
    meter.sources.append(lambda: model_tensors(models[-1]) if models else ())
    models.append(_load(request, config, models.append))
    torch.cuda.empty_cache()
    meter.enter("prepare", 0)
    model = _prepare(models[-1], request, facts, architecture)
    models.append(model)
    if verdict is not None:
        assume_balanced_routing(model, verdict)
        assume_no_outliers(verdict)
    meter.tell(count_parameters(model))
    layers, head = _layers_and_head(model, architecture, facts)
    _watch_head(head, meter)

    def begins(step: int) -> None:
        if step == request.steps + 1 and tracer.recording is None:
            meter.close()
            tracer.start()
            tracer.follow(model, layers, head)

    if tracer.recording is not None:
        tracer.follow(model, layers, head)
    declare = _declares_nothing if verdict is None else verdict.declare
    run_stack(Run(job, facts, architecture, model, meter, request.steps + 1, begins, declare))


def _declares_nothing(_: Any, __: str) -> None:
    """A real GPU answers for its own numbers."""


def _load(request: Request, config: dict[str, Any], begun: Callable[[Any], None]) -> Any:
    check_attention(request.job, config)
    if request.weights is None and not request.load:
        return build_on_device(request.job, config, begun)
    from qmem.profiler.checkpoint import load_checkpoint, load_zeros  # noqa: PLC0415

    if request.weights is not None:
        return load_checkpoint(request.job, request.weights)
    return load_zeros(request.job, config)


def _prepare(model: Any, request: Request, facts: StackFacts, architecture: Architecture) -> Any:
    if facts.kbit_preparation:
        model = prepare_for_kbit_training(model, request.job, facts, architecture)
    return add_adapter(model, request.job, facts) if request.job.has_adapter else model


def count_parameters(model: Any) -> Described:
    """Elements as peft counts them: of a packed weight the elements it stands for."""
    counts = [(_numel(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return Described(
        total=sum(numel for numel, _ in counts), trainable=sum(numel for numel, trained in counts if trained)
    )


def _numel(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel() if state is not None else parameter.numel())


def _layers_and_head(model: Any, architecture: Architecture, facts: StackFacts) -> tuple[list[Any], HeadPlace]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(base.get_submodule(architecture.layers_name)), head_of(base, architecture, facts)


def _watch_head(head: HeadPlace, meter: Meter) -> None:
    """The loss begins where the head does."""

    def enter_loss(_: Any) -> None:
        if meter.place is not None and meter.place.phase == "forward":
            meter.enter("loss")

    head.watch(enter_loss)


def clear_workspaces() -> dict[int, Block]:
    """Give cuBLAS's workspaces back, and return the blocks that they were; nobody else can tell which they are."""
    import torch  # noqa: PLC0415

    before = active_blocks()
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001
    after = active_blocks()
    return {address: block for address, block in before.items() if address not in after}
