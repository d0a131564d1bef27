"""What is refused before a worker is started."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from qmem.catalogue.stacks import resolve_stack
from qmem.errors import UnavailableError, UnsupportedError, UsageError
from qmem.job import make_job
from qmem.profiler import profile
from qmem.profiler.protocol import Started
from qmem.profiler.sentences import other_versions
from qmem.profiler.supervisor import Told


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stack": "hf", "facts": {"trainer_loop": "no"}}, "the stack hf cannot run trainer_loop=no"),
        ({"stack": "plain", "facts": {"token_mean": "yes"}}, "the stack plain cannot run token_mean=yes"),
        ({"stack": "hf", "optimizer": "adamw_32bit"}, "the stack hf has no optimizer adamw_32bit"),
        ({"loss": "chunked"}, "cannot run the loss 'chunked'"),
    ],
)
def test_a_fact_that_a_stack_cannot_carry_out_is_refused(small_job, a100, fields, message):
    with pytest.raises(UnsupportedError, match=message):
        profile(small_job(**fields), phantom=a100)


def test_a_router_that_returns_two_results_cannot_be_adapted(a100):
    with pytest.raises(UsageError, match="which returns scores and logits") as refused:
        profile(make_job({"model": "Llama-4-Scout-17B-16E-Instruct"}), phantom=a100)
    assert refused.value.hint.startswith("name the other linears: --targets q_proj,")


def test_one_step_is_too_few(small_job, a100):
    with pytest.raises(UsageError, match="2 are the least"):
        profile(small_job(), phantom=a100, steps=1)


def test_a_memory_size_needs_a_phantom(small_job):
    with pytest.raises(UsageError, match="no phantom GPU"):
        profile(small_job(), memory=2**34)


def test_weights_must_be_a_checkpoint(small_job, a100, tmp_path):
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        profile(small_job(), phantom=a100, weights=Path(tmp_path))
    with pytest.raises(UsageError, match="both a checkpoint and a load of zeros"):
        profile(small_job(), phantom=a100, weights=Path(tmp_path), load=True)


def test_weights_of_a_multi_modal_model_would_bring_its_towers(small_job, a100, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma4", "text_config": {}, "vision_config": {}}')
    with pytest.raises(
        UnsupportedError, match="a multi-modal gemma4, which AutoModelForCausalLM loads with its towers"
    ):
        profile(small_job(), phantom=a100, weights=tmp_path)


def test_a_version_that_the_job_names_must_be_the_one_installed(small_job, a100):
    installed = version("transformers")
    with pytest.raises(UnavailableError, match=rf"4\.48\.1, but transformers {re.escape(installed)} is"):
        profile(small_job(stack="hf@transformers=4.48.1"), phantom=a100)


def test_libraries_that_are_not_those_of_the_stack_are_told():
    facts = resolve_stack(make_job({"model": "m", "stack": "hf@transformers=4.48.1"}))
    passport = {**facts.versions, "torch": "2.4.1+cu121", "peft": "0.14.0"}
    told = Told([Started(pid=1, device="a card", passport=passport)], "complete")
    (sentence,) = other_versions(facts, told)
    assert sentence.endswith("it ran with peft 0.14.0 (not 0.13.2)")
