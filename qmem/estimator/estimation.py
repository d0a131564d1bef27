"""``estimate``: describe the model, walk the step on paper, replay or round, settle.  The estimator's top."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Literal, NamedTuple

from msgspec import structs

from qmem.allocator import AllocatorSettings, Replay, parse_settings, round_to_grain
from qmem.allocator import replay as replay_trace
from qmem.allocator import warnings as allocator_warnings
from qmem.architecture import (
    AdapterPlan,
    Architecture,
    adapt,
    check_plain_head,
    check_plain_routers,
    describe,
    position_warning,
    quantized_modules,
)
from qmem.catalogue import FoundModel, Gpu, find_model
from qmem.catalogue.stacks import StackFacts, facts_in_force, resolve_stack
from qmem.errors import UnsupportedError
from qmem.estimator import paper
from qmem.estimator.doubt import doubt, has_experts
from qmem.estimator.families import check_family
from qmem.estimator.families.parts import layer_kinds
from qmem.estimator.model import Trained, layer_of, trained_parameters
from qmem.estimator.repeat import ENDS, STEADY_ENDS, Cut, cut_of, repeated
from qmem.estimator.settle import Settled, settle
from qmem.estimator.step import Walk, walk
from qmem.estimator.storage import optimizer_state
from qmem.estimator.supported import check_older, check_scored, check_supported
from qmem.job import Job
from qmem.ledger import Item, Kind, Ledger, Moment, Parameters, Peak, Reading, Trace
from qmem.ledger.series import series_name, with_range

ASSUMED_GPU = paper.Gpu((8, 0), 108)
"""Without a named GPU kernels are chosen as on an A100 (compute capability 8.0, 108 multiprocessors)."""


UNROUTED = ("llama4_text",)
"""Families whose experts see every token, whatever their routers say."""


class Described(NamedTuple):
    """A job with everything that follows from its model and its stack."""

    job: Job
    found: FoundModel
    architecture: Architecture
    plan: AdapterPlan
    quantized: frozenset[str]
    facts: StackFacts
    gpu: paper.Gpu


ReplayMode = Literal["none", "quick", "full"]


def estimate(job: Job, gpu: Gpu | None = None, *, replay: ReplayMode = "quick") -> Ledger:
    """The ledger of a job, from a walk through its steps; no torch, no network, no weights.

    Args:
        job: what is asked.
        gpu: the card whose kernels and workspaces are used; an A100 where none is named.
        replay: how the caching allocator is run over the walk, for what it holds reserved and the tails of its
            blocks. "full": over every event. "quick": in repeated layers only over what outlives them, which is off
            by a few percent of reserved (``reports/accuracy.md``). "none": every allocation is rounded to 512
            bytes, and reserved is absent.

    Raises:
        UsageError: the job contradicts itself or its model.
        UnsupportedError: the job asks for something that is not modelled yet.
    """
    described = _describe(job, gpu)
    with _without_garbage_collection():
        trace = _walk(described, brief=replay != "full")
        blocks, played = _replayed(job, trace, replay, gpu)
        settled = settle(trace, blocks, described.architecture.n_layers)
    return _ledger(described, settled, played, gpu, replay)


def peak_requested(job: Job, gpu: Gpu | None = None) -> int:
    """Bytes that the job's tensors ask for at the fullest moment of a steady step: the quickest answer.

    Raises:
        UsageError, UnsupportedError: as ``estimate``.
    """
    with _without_garbage_collection():
        trace = _walk(_describe(job, gpu), brief=True, steady=True)
    sizes = trace.sizes
    return max(accumulate(sizes[event] if event >= 0 else -sizes[~event] for event in trace.events))


def trace_of(job: Job, gpu: Gpu | None = None) -> Trace:
    """Every allocation and free of the job's walk."""
    with _without_garbage_collection():
        return _walk(_describe(job, gpu), brief=False)


def _describe(job: Job, gpu: Gpu | None) -> Described:
    found = find_model(job.model)
    architecture = describe(found.config)
    check_family(architecture.family)
    plan = adapt(architecture, job)
    facts = resolve_stack(job)
    check_plain_routers(architecture, plan)
    check_supported(job, plan, facts)
    check_older(job, architecture.family, facts)
    if facts.fused_head:
        check_plain_head(architecture, plan, job)
        check_scored(architecture)
    quantized = frozenset(linear.name for linear in quantized_modules(architecture, job))
    return Described(job, found, architecture, plan, quantized, facts, _kernels_of(gpu))


def _kernels_of(gpu: Gpu | None) -> paper.Gpu:
    if gpu is None:
        return ASSUMED_GPU
    if gpu.compute_capability is None or gpu.sm_count is None:
        raise UnsupportedError(f"kernels of {gpu.name} are not modelled", hint="name an NVIDIA GPU of qmem gpus")
    major, minor = gpu.compute_capability.split(".")
    return paper.Gpu((int(major), int(minor)), gpu.sm_count)


def _walk(described: Described, *, brief: bool, steady: bool = False) -> Trace:
    """Walk a few layers (or periods of layers), repeat one in the middle; walk all where they are few or not alike."""
    n_layers = described.architecture.n_layers
    cut = _cut(described, STEADY_ENDS if steady else ENDS)
    if cut is not None:
        walked = _program(described, cut.walked, steady=steady, brief=brief)
        longer = repeated(walked.trace, walked.regions, n_layers, cut, brief=brief)
        if longer is not None:
            return longer
    return _program(described, n_layers, steady=steady, brief=brief).trace


def _cut(described: Described, ends: int = ENDS) -> Cut | None:
    adapted = (module.name for module in described.plan.adapted)
    return cut_of(layer_kinds(described.architecture, described.quantized, adapted), ends)


def _program(described: Described, n_layers: int, *, steady: bool = False, brief: bool = False) -> Walk:
    """Run the job's program with the first ``n_layers`` layers of its model."""
    whole, plan = described.architecture, described.plan

    def kept(name: str) -> bool:
        layer = layer_of(name)
        return layer is None or layer < n_layers

    architecture = whole._replace(
        parameters=tuple(parameter for parameter in whole.parameters if kept(parameter.name)),
        buffers=tuple(buffer for buffer in whole.buffers if kept(buffer.name)),
        linears=tuple(linear for linear in whole.linears if kept(linear.name)),
        n_layers=n_layers,
    )
    adapted = tuple(module for module in plan.adapted if kept(module.name))
    cut = plan._replace(adapted=adapted)
    n_trained = sum(1 for _ in _trained(described))
    described_cut = (described.job, architecture, cut, described.quantized, described.facts, described.gpu)
    return walk(*described_cut, n_trained, steady=steady, brief=brief)


def _replayed(job: Job, trace: Trace, mode: ReplayMode, gpu: Gpu | None) -> tuple[list[int], Replay | None]:
    """What the allocator hands out for each allocation: a multiple of 512 bytes, or the block of a replay.

    An expandable segment's range is as long as the card is large; nothing runs out.
    """
    if mode == "none":
        return [round_to_grain(size) for size in trace.sizes], None
    settings = structs.replace(_settings(job), per_process_memory_fraction=1.0)
    played = replay_trace(trace, settings, device_total=gpu.total_bytes if gpu else None)
    return played.block_bytes, played


def _settings(job: Job) -> AllocatorSettings:
    return parse_settings(job.alloc_conf, expandable_segments=job.expandable_segments)


def _ledger(
    described: Described, settled: Settled, played: Replay | None, gpu: Gpu | None, replay: ReplayMode
) -> Ledger:
    job, plan, found = described.job, described.plan, described.found
    managed = _managed(described, settled)
    return Ledger(
        instrument="estimate",
        job=job,
        model=found.id,
        device=gpu.name if gpu else "",
        stack={"title": described.facts.title, **facts_in_force(described.facts)},
        versions=described.facts.versions,
        parameters=Parameters(plan.total, plan.trainable),
        peak=_peak(described, settled, played, replay),
        paged_bytes=sum(item.n_bytes for item in managed),
        items=(*settled.items, *managed),
        readings=(*settled.readings, *_reserved_readings(settled, played, replay)),
        assumptions=_assumptions(described, gpu, replay),
        warnings=_warnings(described),
    )


def _peak(described: Described, settled: Settled, played: Replay | None, replay: ReplayMode) -> Peak:
    span = settled.peak
    allocated_bytes = settled.allocated[span.high_water]
    reserved_bytes = played.peak_reserved_bytes if played else None
    return Peak(
        moment=span.moment(span.high_water),
        requested_bytes=settled.requested[span.high_water],
        allocated_bytes=allocated_bytes,
        reserved_bytes=reserved_bytes,
        doubt=doubt(described.job, described.architecture, allocated_bytes, reserved_bytes, replay),
    )


def _reserved_readings(settled: Settled, played: Replay | None, replay: ReplayMode) -> list[Reading]:
    """What the allocator held reserved when each phase closed, and at most during it."""
    readings = []
    for span in settled.spans:
        # A phase that is cut by ``empty_cache`` was replayed in parts.
        uses = [use for use in played.phases if use.mark[1:4] == span.mark[1:4]] if played else []
        if uses:
            peak = max(use.peak_reserved_bytes for use in uses)
            readings += [
                _reserved(span.closing, "peak", peak, f"{replay} replay"),
                _reserved(span.closing, "current", uses[-1].reserved_bytes, f"{replay} replay"),
            ]
    return readings


def _reserved(moment: Moment, measure: Literal["current", "peak"], n_bytes: int, counter: str) -> Reading:
    return Reading(moment=moment, waterline="reserved", measure=measure, n_bytes=n_bytes, counter=counter)


def _trained(described: Described) -> Iterator[Trained]:
    return trained_parameters(described.architecture, described.plan, described.facts, described.job)


def _managed(described: Described, settled: Settled) -> list[Item]:
    """The state that a paged optimizer keeps in managed memory: born in the first optimizer step, for good."""
    born = next(span.closing for span in settled.spans if span.mark.phase == "optimizer step")
    totals: dict[tuple[str, str], list[int]] = {}
    for name, shape, dtype, in_embedding in _trained(described):
        exempt = described.facts.trainer_loop and in_embedding
        for piece in optimizer_state(described.job.optimizer, shape, dtype, keeps_32bit=exempt):
            if piece.space == "managed":
                totals.setdefault((series_name(f"{name}.{piece.name}"), piece.because), []).append(piece.n_bytes)
    n_layers = described.architecture.n_layers
    return [
        Item(
            n_bytes=sum(sizes),
            kind=Kind.OPTIMIZER_STATE,
            owner=with_range(owner, len(sizes), n_layers),
            born=born,
            space="managed",
            because=because,
            count=len(sizes),
        )
        for (owner, because), sizes in totals.items()
    ]


def _assumptions(described: Described, gpu: Gpu | None, replay: ReplayMode) -> tuple[str, ...]:
    sentences = []
    if replay == "quick":
        sentences.append("reserved is from a quick replay of the allocator: --replay runs every event")
    if gpu is None:
        sentences.append("kernels and workspaces are those of an A100 (sm_80): name a card with --gpu for its own")
    if described.job.effective_quant == "int8":
        sentences.append("int8: no activation has outlier columns, whose number depends on the data")
    if described.architecture.family not in UNROUTED and has_experts(described.architecture):
        sentences.append(
            "balanced routing: every expert gets as many tokens as the others; what a grouped product allocates does"
            " not depend on it"
        )
    if "linear_attention" in described.architecture.config.get("layer_types", ()):
        sentences.append(
            "linear attention in torch code, as without flash-linear-attention and causal-conv1d: it takes more memory"
        )
    if described.job.grad_accum > 1:
        sentences.append("micro-steps after the second are like the second")
    return tuple(sentences)


def _warnings(described: Described) -> tuple[str, ...]:
    job = described.job
    beyond = position_warning(described.architecture, job.seq)
    settings = _settings(job)
    limited = settings.per_process_memory_fraction < 1
    return (
        *described.found.notes,
        *described.plan.warnings,
        *_unquantized_experts(described),
        *([beyond] if beyond else []),
        *allocator_warnings(settings),
        *(["per_process_memory_fraction limits nothing here: verdicts are of the whole card"] if limited else []),
    )


def _unquantized_experts(described: Described) -> Iterator[str]:
    """What surprises most in a mixture: bitsandbytes replaces linear layers, and fused experts are none."""
    if described.job.effective_quant == "none" or not described.architecture.fused_experts:
        return
    experts = sum(parameter.numel for parameter in described.architecture.parameters if parameter.role == "expert")
    if experts:
        casts = described.facts.kbit_preparation and described.facts.cast_norms and described.job.dtype != "fp32"
        then = "; the k-bit preparation makes them fp32, which --set cast_norms=no leaves out" if casts else ""
        stay = f"{experts:,} parameters of fused experts stay in {described.job.dtype}"
        yield f"bitsandbytes quantizes linear layers only: {stay}{then}"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Paper tensors die by reference count alone; the cycle collector would only look for what is not there."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
