"""Whole QLoRA steps of transformers' Trainer on the phantom, watched by the guard.

The totals of Qwen3-14B were recorded with another implementation of the same idea, whose guard was a patch of the two
functions of transformers 5.23.0 that look at masks (torch 2.14.1, peft 0.21.2, bitsandbytes 0.50.2).
"""

from importlib.metadata import version

import pytest
from phantom_process import run_script

pytestmark = pytest.mark.libraries

RECORDED_WITH = {"torch": "2.14.1", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"}


def small(*options):
    return run_script("trainer_step.py", "--model", "Qwen3-0.6B", "--layers", 2, "--seq", 512, "--steps", 2, *options)


@pytest.fixture(scope="module")
def qwen3_14b():
    installed = {name: version(name) for name in RECORDED_WITH}
    if installed != RECORDED_WITH:
        pytest.skip(f"recorded with {RECORDED_WITH}, installed is {installed}")
    return run_script("trainer_step.py", "--model", "Qwen3-14B")


def test_the_totals_of_qwen3_14b_are_those_that_were_recorded(qwen3_14b):
    assert qwen3_14b["after_load"] == 9_975_308_288
    assert qwen3_14b["peak_allocated"] == 20_372_043_264
    assert qwen3_14b["peak_reserved"] == 22_389_194_752


def test_paged_optimizer_state_lies_in_managed_memory(qwen3_14b):
    assert qwen3_14b["managed"] == 40 * 3 * 139_264 * 8  # layers, tensors of at least 100,000 elements, two fp32 states


def test_a_step_at_batch_one_takes_the_maskless_path_and_is_clean(qwen3_14b):
    assert qwen3_14b["attention_masks"] == ["None"]
    assert qwen3_14b["state"] == "clean"
    assert {read["why"] for read in qwen3_14b["reads"]} == {"host values", "loss", "gradient norm"}


@pytest.fixture(scope="module")
def batch_of_two():
    return small("--batch", 2)


def test_a_step_at_batch_two_takes_the_maskless_path_and_is_clean(batch_of_two):
    assert (batch_of_two["attention_masks"], batch_of_two["state"]) == (["None"], "clean")


def test_a_run_repeats_to_the_byte(batch_of_two):
    assert small("--batch", 2) == batch_of_two


def test_a_mask_of_ones_takes_the_maskless_path(batch_of_two):
    masked = small("--batch", 2, "--mask")
    assert (masked["attention_masks"], masked["state"]) == (["None"], "clean")
    assert 0 <= masked["peak_allocated"] - batch_of_two["peak_allocated"] < 2**20


def test_a_padded_batch_takes_the_masked_path_that_a_real_run_takes(batch_of_two):
    padded = small("--batch", 2, "--padded")
    assert (padded["attention_masks"], padded["state"]) == (["(2, 1, 512, 512)"], "clean")
    assert padded["peak_allocated"] > batch_of_two["peak_allocated"]


def test_hopper_trains_through_cudnn_attention():
    hopper = small("--batch", 2, "--gpu", "h100")
    assert (hopper["attention_masks"], hopper["state"]) == (["None"], "clean")


def test_routing_to_experts_taints_unless_it_is_assumed_to_be_balanced():
    steps = run_script("routing.py")
    assert steps["as_it_is"]["state"] == "tainted"
    assert (steps["balanced"]["state"], steps["balanced"]["why"]) == ("assumed", ["balanced routing"])
    assert steps["balanced"]["peak"] > steps["as_it_is"]["peak"]  # without an answer no expert gets a token
