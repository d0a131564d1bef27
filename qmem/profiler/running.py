"""One job from loading to the traced step, in the worker.

It owns the order of things; building, preparing, looping and tracing are others'.
"""

from collections.abc import Callable
from typing import Any

from qmem.architecture import Architecture, describe
from qmem.catalogue import find_model
from qmem.catalogue.stacks import StackFacts, resolve_stack
from qmem.profiler.build import build_on_device
from qmem.profiler.device import DeviceCounters
from qmem.profiler.meter import Meter, active_blocks
from qmem.profiler.names import model_tensors
from qmem.profiler.prepare import add_adapter, prepare_for_kbit_training
from qmem.profiler.protocol import Block, Described, Event, Request, Traced, Workspaces
from qmem.profiler.stacks import Run, run_stack
from qmem.profiler.tracing import Tracer


def run_job(request: Request, device: DeviceCounters, tell: Callable[[Event], None], verdict: Any) -> None:
    """Load, prepare, run the clean steps and the traced one.

    ``verdict`` is the readback guard's; ``None`` on a real GPU.
    """
    import torch  # noqa: PLC0415

    job = request.job
    config = find_model(job.model).config
    architecture, facts = describe(config), resolve_stack(job)
    meter = Meter(tell, device, architecture.n_layers)
    torch.manual_seed(0)
    bindings: Any = torch._C  # noqa: SLF001
    bindings._cuda_attach_out_of_memory_observer(lambda *_: meter.cut_off())  # noqa: SLF001
    meter.enter("load", 0)
    models: list[Any] = []
    meter.sources.append(lambda: model_tensors(models[-1]) if models else ())
    models.append(_load(request, config, models.append))
    torch.cuda.empty_cache()
    meter.enter("prepare", 0)
    model = _prepare(models[-1], request, facts, architecture)
    models.append(model)
    tell(_described(model))
    tracer = _watch_head(model, meter, architecture)

    def begins(step: int) -> None:
        if step == request.steps + 1:
            meter.close()
            tracer.start()

    declare = _declares_nothing if verdict is None else verdict.declare
    run_stack(Run(job, facts, architecture, model, meter, request.steps + 1, begins, declare))
    tracer.stop()
    workspaces = clear_workspaces()
    tell(Workspaces(addresses=tuple(workspaces)))
    tell(Traced(phases=tracer.phases(workspaces)))


def _declares_nothing(_: Any, __: str) -> None:
    """A real GPU answers for its own numbers."""


def _load(request: Request, config: dict[str, Any], begun: Callable[[Any], None]) -> Any:
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


def _described(model: Any) -> Described:
    """Elements as peft counts them: of a packed weight the elements it stands for."""
    counts = [(_numel(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return Described(
        total=sum(numel for numel, _ in counts), trainable=sum(numel for numel, trained in counts if trained)
    )


def _numel(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel() if state is not None else parameter.numel())


def _watch_head(model: Any, meter: Meter, architecture: Architecture) -> Tracer:
    """The loss begins where the head is called; the tracer looks at the same place and at the layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()

    def enter_loss(*_: Any) -> None:
        if meter.place is not None and meter.place.phase == "forward":
            meter.enter("loss")

    head.register_forward_pre_hook(enter_loss)
    return Tracer(model, list(base.get_submodule(architecture.layers_name)), head, meter)


def clear_workspaces() -> dict[int, Block]:
    """Give cuBLAS's workspaces back, and return the blocks that they were; nobody else can tell which they are."""
    import torch  # noqa: PLC0415

    before = active_blocks()
    torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001
    after = active_blocks()
    return {address: block for address, block in before.items() if address not in after}
