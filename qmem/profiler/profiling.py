"""``profile``: check what can be checked, run the worker, and make the ledger of what it told.  The profiler's top."""

from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from qmem.architecture import adapt, check_plain_head, check_plain_routers, describe
from qmem.catalogue import Gpu, find_model
from qmem.catalogue.stacks import resolve_stack
from qmem.errors import UnavailableError, UnsupportedError, UsageError
from qmem.job import Job
from qmem.ledger import Ledger
from qmem.profiler.account import ledger_of
from qmem.profiler.protocol import AnyEvent, Closed, Failed, Noted, Request, Traced
from qmem.profiler.refusals import check_libraries, check_stack, check_versions, check_weights
from qmem.profiler.sentences import Described
from qmem.profiler.spans import only
from qmem.profiler.supervisor import Told, run_worker

MIN_STEPS = 2
"""The first step has no optimizer state yet; without a second one there is no steady state."""


def _unwatched(_: AnyEvent) -> None:
    """Nobody watches the run."""


def profile(
    job: Job,
    *,
    phantom: Gpu | None = None,
    memory: int | None = None,
    steps: int = 3,
    weights: Path | None = None,
    load: bool = False,
    on_progress: Callable[[AnyEvent], None] = _unwatched,
) -> Ledger:
    """The ledger of a job, measured on real training steps in a process of its own.

    Args:
        job: what is asked.
        phantom: the card to simulate; without it the steps run on this machine's GPU.
        memory: bytes of the simulated card, where they are to differ from the catalogue's.
        steps: clean steps, at least 2; one more is run to find the owners of transient memory.
        weights: a folder with a local checkpoint; without it weights are made on the device.
        load: send the loading through ``from_pretrained`` of a checkpoint of zeros that takes no disk.
        on_progress: is called with every event of the run.

    The ledger says how the run ended: whatever happens to it, what was measured until then is in the ledger.

    Raises:
        UsageError: the request contradicts itself.
        UnsupportedError: the stack cannot run the job.
        UnavailableError: a library, a version that the job names, a GPU or the phantom is missing, or nothing was
            measured before the run ended.
    """
    _check(memory, phantom, steps, weights, load=load)
    found = find_model(job.model)
    architecture, facts = describe(found.config), resolve_stack(job)
    plan = adapt(architecture, job)
    check_plain_routers(architecture, plan)
    check_stack(job, facts)
    if facts.fused_head:
        check_plain_head(architecture, plan, job)
    check_libraries(job)
    check_versions(job)
    request = Request(
        job=job,
        phantom=phantom.id if phantom else None,
        memory=memory,
        steps=steps,
        weights=str(weights.resolve()) if weights else None,
        load=load,
    )
    told = run_worker(request, on_progress)
    _raise_refusals(told)
    told = _with_owners(told, request, on_progress)
    return ledger_of(Described(request, found, architecture, plan, facts), told)


def _with_owners(told: Told, request: Request, on_progress: Callable[[AnyEvent], None]) -> Told:
    """What held the memory where it ended: the same run once more, with the allocator's history from its beginning.

    Counters are those of the first run alone; where the second ends otherwise, it has nothing to say of the first.
    """
    if told.ended != "out of memory" or only(told, Traced):
        return told
    on_progress(Noted(sentence="out of memory; once more, with the allocator's history, to see what held it"))
    again = run_worker(structs.replace(request, history=True), on_progress)
    traced = only(again, Traced)
    return told if traced is None else told._replace(events=[*told.events, traced])


def _check(memory: int | None, phantom: Gpu | None, steps: int, weights: Path | None, *, load: bool) -> None:
    if steps < MIN_STEPS:
        raise UsageError(
            f"{steps} steps are asked for, but {MIN_STEPS} are the least: the first has no optimizer state"
        )
    if memory is not None and phantom is None:
        raise UsageError(
            "a memory size is given, but no phantom GPU", hint="it changes a simulated card: --phantom GPU"
        )
    if weights is not None and load:
        raise UsageError("both a checkpoint and a load of zeros are asked for", hint="leave one of them out")
    if weights is not None and not (weights / "config.json").is_file():
        raise UsageError(f"{weights} holds no config.json", hint="name the folder of a checkpoint")
    if weights is not None:
        check_weights(weights)


def _raise_refusals(told: Told) -> None:
    """What the worker could not even begin is an error; what it measured before it ended is not."""
    last = told.events[-1] if told.events else None
    if isinstance(last, Failed) and last.why == "unsupported":
        raise UnsupportedError(last.message, hint=last.hint)
    if isinstance(last, Failed) and last.why == "unavailable":
        raise UnavailableError(last.message, hint=last.hint)
    if not any(isinstance(event, Closed) for event in told.events):
        if told.ended == "interrupted":
            raise KeyboardInterrupt
        raise UnavailableError(f"nothing was measured: {told.message}")
