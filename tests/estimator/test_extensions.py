"""What rarer jobs cost, against a plain job: directions that hold whatever the numbers."""

import pytest

from qmem import estimate
from qmem.errors import UnsupportedError
from qmem.job import Job, make_job

BASE = {"model": "Qwen2.5-0.5B", "seq": 512, "stack": "plain"}


def peak(**changes):
    return estimate(make_job({**BASE, **changes})).peak.requested_bytes


def test_checkpointing_saves_little_on_an_int8_base_which_keeps_its_inputs():
    saved_by_checkpointing = peak(checkpointing=False) - peak()
    saved_on_int8 = peak(quant="int8", checkpointing=False) - peak(quant="int8")
    assert 0 < saved_on_int8 < saved_by_checkpointing


def test_dora_costs_more_than_lora():
    assert peak(dora=True, seq=64) > peak(seq=64)


def test_a_saved_head_costs_at_least_its_copy_gradient_and_state():
    head = 151_936 * 896
    assert peak(modules_to_save=("lm_head",), optimizer="adamw_torch") - peak(optimizer="adamw_torch") >= 2 * head * 2


@pytest.mark.parametrize("checkpointing", [True, False])
def test_fp16_costs_what_bf16_costs_in_a_bare_loop(checkpointing):
    assert peak(compute_dtype="fp16", dtype="fp16", checkpointing=checkpointing) == peak(checkpointing=checkpointing)


def test_dora_on_an_int8_base_is_refused():
    with pytest.raises(UnsupportedError, match="DoRA on an int8 base"):
        estimate(Job(model="Qwen2.5-0.5B", quant="int8", dora=True))
