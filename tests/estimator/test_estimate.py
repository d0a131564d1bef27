"""What ``estimate`` promises of every ledger."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmem import Job, estimate
from qmem.allocator import parse_settings, replay
from qmem.catalogue import find_gpu
from qmem.errors import UnsupportedError, UsageError
from qmem.estimator import peak_requested, trace_of
from qmem.ledger import Kind, Ledger, from_json, to_json

SMALL = ("Qwen3-0.6B", "Qwen2.5-0.5B", "SmolLM2-135M", "Llama-3.2-1B")

jobs = st.builds(
    lambda model, method, stack, **fields: Job(model=model, method=method, stack=stack, **fields),
    model=st.sampled_from(SMALL),
    method=st.sampled_from(["qlora", "lora", "full"]),
    stack=st.sampled_from(["hf", "plain"]),
    rank=st.integers(1, 64),
    batch=st.integers(1, 4),
    seq=st.integers(2, 600),
    grad_accum=st.integers(1, 3),
    checkpointing=st.booleans(),
    double_quant=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1]),
    attention=st.sampled_from(["sdpa", "eager"]),
    optimizer=st.sampled_from(
        ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "lion_32bit", "sgd", "adafactor"]
    ),
)


def held(ledger: Ledger, moment, waterline: str) -> int:
    """Bytes of the items alive at a moment, below a waterline."""
    kinds = ledger.by_kind(moment)
    return sum(n for kind, n in kinds.items() if waterline == "allocated" or kind is not Kind.ROUNDING)


@settings(max_examples=25, deadline=None)
@given(job=jobs, replay=st.sampled_from(["none", "quick", "full"]))
def test_items_add_up_to_every_reading(job, replay):
    ledger = estimate(job, replay=replay)
    spoken = [r for r in ledger.readings if r.measure == "current" and r.waterline in ("requested", "allocated")]
    assert spoken
    for reading in spoken:
        assert held(ledger, reading.moment, reading.waterline) == reading.n_bytes
    peaks = [r for r in ledger.readings if r.measure == "peak" and r.waterline == "allocated"]
    for reading in peaks:
        assert held(ledger, reading.moment, "allocated") == reading.n_bytes
    assert ledger.peak.allocated_bytes == max(r.n_bytes for r in peaks)
    assert held(ledger, ledger.peak.moment, "requested") == ledger.peak.requested_bytes


@settings(max_examples=15, deadline=None)
@given(job=jobs)
def test_a_ledger_survives_json(job):
    ledger = estimate(job)
    assert from_json(to_json(ledger)) == ledger


@settings(max_examples=12, deadline=None)
@given(
    model=st.sampled_from(SMALL),
    field=st.sampled_from(["batch", "seq", "rank"]),
    start=st.integers(1, 6),
    more=st.integers(1, 6),
    stack=st.sampled_from(["hf", "plain"]),
    optimizer=st.sampled_from(["adamw_torch", "paged_adamw_32bit", "adamw_32bit"]),
)
def test_memory_does_not_fall_when_batch_sequence_or_rank_rises(model, field, start, more, stack, optimizer):
    """From 1,024 tokens on: below, flash attention splits its keys, and a larger batch can end that.

    8-bit state is left out: it starts at 4,096 elements, so that a rank above that really needs less.
    """
    unit = {"batch": 1, "seq": 128, "rank": 4}[field]
    base = {"batch": 4, "seq": 1024, "rank": 8}
    smaller = Job(model=model, stack=stack, optimizer=optimizer, **{**base, field: base[field] + unit * start})
    larger = smaller.replace(**{field: base[field] + unit * (start + more)})
    before, after = estimate(smaller, replay="none"), estimate(larger, replay="none")
    assert after.peak.requested_bytes + after.paged_bytes >= before.peak.requested_bytes + before.paged_bytes


@pytest.mark.parametrize("job", [Job(model="Qwen3-0.6B", stack="plain"), Job(model="Qwen3-0.6B", grad_accum=4)])
def test_the_peak_of_a_phase_is_no_less_than_what_it_begins_with(job):
    readings = [reading for reading in estimate(job, replay="none").readings if reading.waterline == "allocated"]
    peaks, currents = readings[::2], readings[1::2]
    assert {one.measure for one in peaks} == {"peak"}
    assert {one.measure for one in currents} == {"current"}
    assert all(peak.n_bytes >= before.n_bytes for peak, before in zip(peaks[1:], currents, strict=False))


def test_the_readme_job_is_the_recorded_one():
    ledger = estimate(Job(model="Qwen3-14B", rank=8), find_gpu("a100-80"), replay="full")
    assert ledger.peak.allocated_bytes == 20_372_043_264
    assert ledger.peak.reserved_bytes == 22_389_194_752
    assert ledger.paged_bytes == 133_693_440
    assert ledger.parameters.trainable == 32_112_640
    assert (ledger.peak.moment.phase, ledger.peak.moment.step) == ("backward", 2)


@pytest.mark.parametrize("stack", ["hf", "plain"])
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_quick_peak_is_that_of_the_second_step(stack, method):
    job = Job(model="Qwen3-0.6B", stack=stack, method=method, optimizer="adamw_torch")
    second = [r.n_bytes for r in estimate(job).readings if (r.moment.step, r.waterline) == (2, "requested")]
    assert peak_requested(job) == pytest.approx(max(second), abs=16)  # the Trainer's scalars of the first step


@pytest.mark.parametrize("model", ["Meta-Llama-3.1-405B", "Qwen3-14B", "Meta-Llama-3.1-70B"])
def test_the_json_of_the_largest_models_stays_small(model):
    assert len(to_json(estimate(Job(model=model, rank=64), replay="full"))) < 300_000


def test_expandable_segments_hold_less_reserved_and_no_tails():
    default = estimate(Job(model="Qwen3-14B"), replay="full").peak
    expandable = estimate(Job(model="Qwen3-14B", expandable_segments=True), replay="full").peak
    assert expandable.reserved_bytes < default.reserved_bytes
    assert expandable.allocated_bytes == estimate(Job(model="Qwen3-14B"), replay="none").peak.allocated_bytes


def test_the_card_decides_workspaces():
    on_a100 = estimate(Job(model="Qwen3-0.6B"), find_gpu("a100-80"))
    on_h100 = estimate(Job(model="Qwen3-0.6B"), find_gpu("h100"))
    peaks = [sum(i.n_bytes for i in on.at(on.peak.moment) if i.kind is Kind.WORKSPACE) for on in (on_a100, on_h100)]
    assert peaks == [2 * 8_519_680, 2 * 32 * 1024**2]


@pytest.mark.parametrize(
    ("job", "error", "match"),
    [
        (Job(model="nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"), UnsupportedError, "model type .nemotron_h. is not"),
        (Job(model="Qwen3.5-0.8B", dtype="fp16", compute_dtype="fp16"), UnsupportedError, "a convolution in fp16"),
        (Job(model="flan-t5-base", stack="trl"), UnsupportedError, "trl trains no t5"),
        (Job(model="t5-base", facts={"reentrant": "yes"}), UnsupportedError, "reentrant checkpointing of a T5"),
        (Job(model="t5-base", dtype="fp16", compute_dtype="fp16", stack="plain"), UnsupportedError, "a T5 in fp16"),
        (Job(model="Qwen3-14B", attention="flash_attention_2"), UnsupportedError, "flash_attention_2 is not modelled"),
        (Job(model="Qwen3-14B", loss="fused_linear"), UnsupportedError, "loss 'fused_linear' is not modelled"),
        (Job(model="Qwen3-14B", stack="trl", targets=("lm_head",)), UnsupportedError, "lm_head out of the targets"),
        (Job(model="Qwen3-30B-A3B", stack="trl"), UnsupportedError, "load-balancing loss that SFTTrainer adds"),
        (Job(model="Qwen3-0.6B", stack="trl", compute_dtype="fp16"), UnsupportedError, "unscaling 16-bit gradients"),
        (Job(model="Qwen3-14B", rank=4096), UsageError, "rank"),
        (Job(model="Qwen3-14B", targets=("nothing",)), UsageError, "nothing"),
        (Job(model="Qwen3-14B", facts={"no_such": "x"}), UsageError, "no fact 'no_such'"),
        (Job(model="Qwen3-14B", alloc_conf="max_split_size_mb:x"), UsageError, "max_split_size_mb"),
        (Job(model="no-such-model"), UsageError, "no-such-model"),
    ],
)  # fmt: skip
def test_what_cannot_be_estimated_is_refused_by_name(job, error, match):
    with pytest.raises(error, match=match):
        estimate(job)


def test_preparation_reserves_more_than_it_leaves():
    """Both the cast and the original stand there at once; ``empty_cache`` gives the rest back within the phase."""
    readings = estimate(Job(model="Qwen3-14B"), replay="full").readings
    peak, current = (
        next(
            r.n_bytes for r in readings if (r.moment.phase, r.waterline, r.measure) == ("prepare", "reserved", measure)
        )
        for measure in ("peak", "current")
    )
    assert peak > current + 2 * 1024**3


def test_amd_cards_are_refused():
    with pytest.raises(UnsupportedError, match="not modelled"):
        estimate(Job(model="Qwen3-0.6B"), find_gpu("mi300x"))


def test_a_sequence_beyond_the_positions_is_a_warning():
    ledger = estimate(Job(model="Llama-2-7b-hf", seq=8192))
    assert any("beyond the 4096 positions" in warning for warning in ledger.warnings)


def test_experts_that_bitsandbytes_cannot_quantize_are_a_warning():
    (unquantized,) = [text for text in estimate(Job(model="Qwen3-30B-A3B", seq=128)).warnings if "experts" in text]
    assert "28,991,029,248 parameters of fused experts stay in bf16" in unquantized  # 48 x 128 x 3 x 2048 x 768
    assert "makes them fp32" in unquantized
    plain = estimate(Job(model="Qwen3-30B-A3B", seq=128, stack="plain")).warnings
    assert any("experts" in text and "fp32" not in text for text in plain)
    assert not any("experts" in text for text in estimate(Job(model="Qwen3-30B-A3B", method="lora", seq=128)).warnings)


def test_an_expandable_range_is_as_long_as_the_card():
    job = Job(model="SmolLM2-135M", method="full", batch=8, seq=2048, checkpointing=False, expandable_segments=True)
    card = find_gpu("t4")  # 16 GB: what is asked for does not fit into one range
    replayed = estimate(job, card, replay="full").peak
    trace = trace_of(job, card)
    settings = parse_settings("", expandable_segments=True)
    assert replayed.reserved_bytes == replay(trace, settings, device_total=card.total_bytes).peak_reserved_bytes
    assert replayed.reserved_bytes != replay(trace, settings).peak_reserved_bytes


def test_a_memory_fraction_is_said_to_limit_nothing():
    job = Job(model="SmolLM2-135M", seq=128, alloc_conf="per_process_memory_fraction:0.5")
    assert any("per_process_memory_fraction limits nothing here" in text for text in estimate(job).warnings)


def test_the_copy_of_a_saved_module_is_a_part_of_the_adapter():
    plain, saved = (
        estimate(Job(model="Qwen3-0.6B", seq=128, modules_to_save=modules)) for modules in ((), ("lm_head",))
    )
    copies = [ledger.by_kind(ledger.peak.moment)[Kind.ADAPTER] for ledger in (plain, saved)]
    assert copies[1] - copies[0] == 151_936 * 1024 * 4  # the tied head, in fp32 since the k-bit preparation
