"""A trace of repeated layers is the trace of the full walk."""

import pytest

from qmem.allocator import round_to_grain
from qmem.estimator import estimation, trace_of
from qmem.estimator.repeat import STEADY_ENDS, Cut, cut_of, repeated
from qmem.estimator.settle import Settled, settle
from qmem.job import Job
from qmem.ledger import Trace

JOBS = [
    Job(model="Qwen3-14B"),
    Job(model="Qwen3-0.6B", batch=4, seq=1024),
    Job(model="Qwen3-8B", stack="plain"),
    Job(model="Qwen3-4B", method="full", optimizer="adamw_torch", seq=512),
    Job(model="Qwen3-1.7B", method="lora", optimizer="adamw_torch_fused"),
    Job(model="Qwen2-1.5B", rank=16, dropout=0.2, double_quant=False, batch=16, seq=512),
    Job(model="Qwen2.5-0.5B", checkpointing=False, seq=256),
    Job(model="Qwen2.5-7B-Instruct", targets=("q_proj", "v_proj"), batch=8, seq=512),
    Job(model="Qwen2.5-32B-Instruct", quant="fp4", grad_accum=4),
    Job(model="Llama-2-7b-hf", rank=64, checkpointing=False, seq=512),
    Job(model="Llama-2-7b-hf", attention="eager"),
    Job(model="Meta-Llama-3-8B", batch=2, seq=4096, amp=False),
    Job(model="Llama-3.2-1B", seq=128),
    Job(model="Llama-3.2-1B", seq=16, optimizer="adamw_8bit"),
    Job(model="Meta-Llama-3.1-70B", optimizer="paged_adamw_8bit"),
    Job(model="TinyLlama-1.1B-Chat-v1.0", method="full", optimizer="sgd", checkpointing=False, seq=256),
    Job(model="Mistral-7B-v0.3", method="lora", batch=4, optimizer="lion_32bit"),
    Job(model="Mistral-7B-v0.1", seq=4096),
    Job(model="Yi-34B", rank=64, stack="plain", grad_accum=2),
    Job(model="SmolLM2-135M", method="full", optimizer="paged_adamw_32bit", seq=512),
    Job(model="Qwen3-0.6B", method="full", optimizer="adafactor", seq=512),
    Job(model="Qwen3-0.6B", dora=True, seq=512),
    Job(model="Qwen3-0.6B", quant="int8", stack="plain", seq=512),
    Job(model="Qwen3-0.6B", facts={"reentrant": "yes"}, compute_dtype="fp16", seq=512),
    Job(model="Qwen3-0.6B", modules_to_save=("lm_head",), seq=512),
    Job(model="gemma-2-2b", attention="eager", seq=512),
    Job(model="gemma-2-27b", attention="eager", seq=128, stack="plain", checkpointing=False),
    Job(model="SmolLM3-3B", batch=2, seq=512),
    Job(model="phi-2", seq=512),
    Job(model="aya-23-8B", method="lora", seq=256),
    Job(model="Qwen3-30B-A3B", seq=128),
    Job(model="Mixtral-8x7B-v0.1", method="lora", stack="plain", checkpointing=False, seq=64),
    Job(model="Qwen1.5-MoE-A2.7B", batch=2, seq=128),
]
TWO_DEEP = [
    Job(model="flan-t5-base", batch=2, seq=128),
    Job(model="t5-base", method="lora", stack="plain", attention="eager", dropout=0.1, seq=192),
    Job(model="t5-base", method="full", checkpointing=False, optimizer="adamw_torch", seq=192),
]
"""The last layer but one differs in every step: there the second gradient of the bias that all layers share arrives."""


def compared(job: Job) -> tuple[Trace, Trace | None, Trace | None, int]:
    """The full walk, and the walk of a few layers (or periods) repeated in full and in brief."""
    described = estimation._describe(job, None)
    n_layers = described.architecture.n_layers
    cut = estimation._cut(described)
    walked = estimation._program(described, cut.walked)
    full, brief = (repeated(walked.trace, walked.regions, n_layers, cut, brief=brief) for brief in (False, True))
    return estimation._program(described, n_layers).trace, full, brief, n_layers


def settled(trace: Trace, n_layers: int) -> Settled:
    return settle(trace, [round_to_grain(size) for size in trace.sizes], n_layers)


def reading_facts(of: Settled) -> list[tuple]:
    return [(r.moment.step, r.moment.phase, r.waterline, r.measure, r.n_bytes) for r in of.readings]


def item_facts(of: Settled) -> list[tuple]:
    return sorted((i.owner, i.kind, i.n_bytes, i.count, i.because, str(i.born), str(i.dies)) for i in of.items)


def named(job: Job) -> str:
    return f"{job.model}-{job.method}-{job.stack}-{job.optimizer}-{job.seq}"


@pytest.mark.parametrize("job", JOBS + TWO_DEEP, ids=named)
def test_repeating_a_layer_gives_the_full_walk_event_by_event(job):
    walked, full, brief, n_layers = compared(job)
    assert full is not None
    assert full.events == walked.events
    assert full.sizes == walked.sizes
    assert full.marks == walked.marks
    assert brief is not None
    assert len(brief.events) < len(full.events)
    assert reading_facts(settled(brief, n_layers)) == reading_facts(settled(full, n_layers))
    assert item_facts(settled(brief, n_layers)) == item_facts(settled(full, n_layers))


@pytest.mark.parametrize("job", JOBS, ids=named)
def test_a_steady_step_repeats_from_fewer_layers_event_by_event(job):
    described = estimation._describe(job, None)
    n_layers = described.architecture.n_layers
    cut = estimation._cut(described, STEADY_ENDS)
    walked = estimation._program(described, cut.walked, steady=True)
    full = repeated(walked.trace, walked.regions, n_layers, cut, brief=False)
    whole = estimation._program(described, n_layers, steady=True).trace
    assert (full.events, full.sizes, full.marks) == (whole.events, whole.sizes, whole.marks)


def test_a_cut_keeps_the_kinds_of_layers_that_take_turns():
    assert cut_of("s" * 7) == Cut(6, 1)
    assert cut_of("s" * 6) is None
    assert cut_of("sf" * 13) == Cut(12, 2)
    assert cut_of("sf" * 13 + "s") == Cut(13, 2)
    assert cut_of("d" + "s" * 20) == Cut(6, 1)
    assert cut_of("d" * 3 + "s" * 22) == Cut(19, 3)
    assert cut_of("s" * 10 + "f" * 10) is None


@pytest.mark.parametrize(
    "job",
    [
        Job(model="OLMo-1B-hf", seq=128),
        Job(model="Qwen2.5-0.5B", targets=r".*layers\.(1\d|20)\..*q_proj", seq=128),
    ],
    ids=["the last linear of a tied model without a last norm's weight is not quantized", "a target in some layers"],
)
def test_layers_of_one_kind_are_cut_only_where_all_of_them_run_alike(job):
    described = estimation._describe(job, None)
    whole = estimation._program(described, described.architecture.n_layers).trace
    assert trace_of(job).sizes == whole.sizes


def test_layers_that_differ_are_not_repeated():
    described = estimation._describe(Job(model="Qwen3-0.6B"), None)
    cut = estimation._cut(described)
    walked = estimation._program(described, cut.walked)
    longest = max(range(len(walked.regions) - 1), key=lambda i: walked.regions[i].layer == cut.middle)
    handle = next(e for e in walked.trace.events[walked.regions[longest].event :] if e >= 0)
    walked.trace.sizes[handle] += 512
    assert repeated(walked.trace, walked.regions, described.architecture.n_layers, cut, brief=False) is None
