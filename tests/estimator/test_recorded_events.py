"""The walk against recorded steps, event by event: the same allocations in the same order."""

from itertools import pairwise

import pytest
from recorded import EVENTS, events, gpu_of, job_of

from qmem.estimator import trace_of
from qmem.ledger import Trace

REFUSED = {"G22_bias_all", "G23_bias_lora_only", "G26_embed_lora"}

SMALLEST = 40_000
"""Scalars, masks of probes and the like are left out; every tensor of a layer is larger."""

STAGES = {
    "load": ("load",),
    "prepare": ("kbit", "lora", "trainer_init", "prepare"),
    "forward": ("fetch", "forward"),
    "backward": ("backward", "scalars"),
    "optimizer step": ("clip", "optimizer", "zero_grad"),
}


def recorded_allocations(phases: dict[str, list[int]], step: int, stage: str) -> list[int]:
    words = STAGES[stage]
    prefix = f"step{step}." if step else ""
    chosen = [name for name in phases if name.startswith(prefix) and name.removeprefix(prefix).startswith(words)]
    return [size for name in chosen for size in phases[name] if size >= SMALLEST]


def walked_allocations(trace: Trace, step: int, stage: str) -> list[int]:
    names = ("forward", "loss") if stage == "forward" else (stage,)
    ends = [*trace.marks, trace.marks[-1]._replace(event=len(trace.events))]
    spans = [(a.event, b.event) for a, b in pairwise(ends) if a.step == step and a.phase in names]
    handles = [event for first, last in spans for event in trace.events[first:last] if event >= 0]
    return [trace.sizes[handle] for handle in handles if trace.sizes[handle] >= SMALLEST]


@pytest.fixture(scope="module", params=sorted(set(EVENTS) - REFUSED))
def run(request, tmp_path_factory):
    recorded = events(request.param)
    trace = trace_of(job_of(recorded, tmp_path_factory.mktemp("model")), gpu_of(recorded))
    return recorded["phases"], trace


@pytest.mark.parametrize("stage", ["load", "prepare"])
def test_loading_and_preparing_allocate_the_same_in_the_same_order(run, stage):
    phases, trace = run
    assert walked_allocations(trace, 0, stage) == recorded_allocations(phases, 0, stage)


@pytest.mark.parametrize("stage", ["forward", "backward", "optimizer step"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_step_allocates_the_same_in_the_same_order(run, step, stage):
    phases, trace = run
    assert walked_allocations(trace, step, stage) == recorded_allocations(phases, step, stage)
