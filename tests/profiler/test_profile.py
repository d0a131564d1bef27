"""A small job on the phantom: what its ledger holds, against the counters and against the estimate."""

import pytest

from qmem.estimator import estimate
from qmem.ledger import Kind, Ledger, from_json, to_json
from qmem.ledger.comparison import compare
from qmem.profiler import profile

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]

TORCH = "torch.cuda.memory_stats"
JOBS = {
    "hf": {},
    "hf, 8-bit paged": {"optimizer": "paged_adamw_8bit", "double_quant": False, "grad_accum": 2},
    "plain": {"stack": "plain", "optimizer": "adamw_32bit"},
    "trl": {"stack": "trl", "batch": 2},
    "trl, full": {"stack": "trl", "method": "full", "optimizer": "adamw_torch", "grad_accum": 2},
    "lora": {"method": "lora", "optimizer": "adamw_torch"},
    "full": {"method": "full", "optimizer": "adamw_torch", "amp": False},
    "no checkpointing": {"stack": "plain", "checkpointing": False, "optimizer": "adamw_8bit"},
    "norms only": {"facts": {"cast_norms": "fp32", "cast_embeddings": "no"}},
    "scaled loss": {"compute_dtype": "fp16"},
}


@pytest.fixture(params=JOBS)
def ledger(request, profiled) -> Ledger:
    return profiled(**JOBS[request.param])


def closing_readings(ledger: Ledger, waterline: str) -> dict:
    return {
        reading.moment: reading.n_bytes
        for reading in ledger.readings
        if reading.waterline == waterline and reading.measure == "current" and reading.counter == TORCH
    }


def held(ledger: Ledger, moment, *, rounding: bool) -> int:
    kinds = ledger.by_kind(moment)
    return sum(n_bytes for kind, n_bytes in kinds.items() if rounding or kind is not Kind.ROUNDING)


def test_items_add_up_to_the_counters_at_every_closing(ledger):
    requested, allocated = (closing_readings(ledger, waterline) for waterline in ("requested", "allocated"))
    assert requested
    for moment in requested:
        assert held(ledger, moment, rounding=False) == requested[moment], str(moment)
        assert held(ledger, moment, rounding=True) == allocated[moment], str(moment)


def test_items_add_up_to_the_peak(ledger):
    assert held(ledger, ledger.peak.moment, rounding=False) == ledger.peak.requested_bytes
    assert held(ledger, ledger.peak.moment, rounding=True) == ledger.peak.allocated_bytes


def test_nothing_is_unexplained(ledger):
    assert [item for item in ledger.items if item.kind is Kind.UNEXPLAINED] == []
    assert ledger.warnings == ()


def test_the_run_is_clean_and_complete(ledger):
    assert (ledger.state, ledger.ended, ledger.instrument) == ("clean", "complete", "phantom profile")


def test_every_named_tensor_is_the_estimates(ledger, a100):
    """Weights, quantization state, adapters, gradients and optimizer state: owner by owner, in bytes and place."""
    compared = compare(estimate(ledger.job, a100), ledger)
    assert compared.owners == ()
    assert compared.paged_a == compared.paged_b


def test_kinds_agree_with_the_estimate_when_phases_close(ledger, a100):
    compared = compare(estimate(ledger.job, a100), ledger)
    requested = [
        (phase.step, phase.phase, kind.kind.value, kind.change)
        for phase in compared.phases
        for kind in phase.kinds
        if kind.kind.waterline == "requested" and abs(kind.change) > 8
    ]
    assert requested == []


def test_a_ledger_is_small_and_survives_json(ledger):
    text = to_json(ledger)
    assert len(text) < 300_000
    assert from_json(text) == ledger


def test_the_passport_says_what_ran(profiled):
    ledger = profiled()
    assert set(ledger.versions) >= {"torch", "transformers", "peft", "accelerate", "bitsandbytes"}
    assert ledger.passport["simulated"] == "yes"
    assert ledger.passport["date"]
    assert ledger.device.endswith("(phantom)")


def test_a_second_run_gives_identical_bytes(profiled, small_job, a100):
    first, second = profiled(), profile(small_job(), phantom=a100, steps=2)
    assert second.items == first.items
    assert second.readings == first.readings
    assert second.peak == first.peak


def test_step_1_has_no_optimizer_state_yet_and_step_2_has(profiled):
    ledger = profiled()
    closings = [moment for moment in closing_readings(ledger, "requested") if moment.phase == "backward"]
    states = [ledger.by_kind(moment).get(Kind.OPTIMIZER_STATE, 0) for moment in closings]
    assert [moment.step for moment in closings] == [1, 2]
    assert states[0] == 0 < states[1]


def test_paged_state_lies_in_managed_memory_only(profiled):
    ledger = profiled()
    managed = [item for item in ledger.items if item.space == "managed"]
    assert ledger.paged_bytes == sum(item.n_bytes for item in managed) > 0
    assert all(item.n_bytes // item.count >= 400_000 for item in managed)


def test_a_cast_that_is_left_out_is_left_out(profiled):
    ledger = profiled(**JOBS["norms only"])
    alive = {item.owner: item.kind for item in ledger.at(ledger.peak.moment)}
    assert alive["model.embed_tokens.weight"] is Kind.WEIGHT_16BIT
    assert alive["model.norm.weight"] is Kind.WEIGHT_32BIT


def test_transient_memory_is_told_by_module_and_line(profiled):
    ledger = profiled()
    checkpoints = [item for item in ledger.at(ledger.peak.moment) if item.kind is Kind.CHECKPOINT]
    assert {item.owner for item in checkpoints} == {"embed_tokens", "decoder layer"}
    assert all("modeling_qwen3.py:" in item.because for item in checkpoints)
