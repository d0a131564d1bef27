"""A stack is data with versions; its facts can be set one by one, and what contradicts itself is refused."""

import pytest

from qmem.catalogue.stacks import facts_in_force, resolve_stack, stack_facts, stack_names
from qmem.errors import UnsupportedError, UsageError
from qmem.job import make_job


def resolved(**fields):
    return resolve_stack(make_job({"model": "m", **fields}))


def test_every_stack_settles_every_fact():
    for name in stack_names():
        in_force = facts_in_force(resolved(stack=name))
        assert set(in_force) == set(stack_facts())
        assert all(value in stack_facts()[fact].values for fact, value in in_force.items())


def test_every_fact_has_a_meaning_and_a_source():
    assert all(fact.meaning and fact.source for fact in stack_facts().values())


def test_the_trainer_prepares_a_quantized_base_and_a_bare_loop_does_not():
    assert resolved().cast_norms
    assert not resolved(stack="plain").kbit_preparation


def test_without_a_quantized_base_nothing_is_cast():
    facts = resolved(method="lora")
    assert [facts.kbit_preparation, facts.cast_norms, facts.cast_embeddings] == [False] * 3


def test_trl_trains_16_bit_adapters_on_quantized_bases_only():
    assert resolved(stack="trl").adapter_dtype == "bf16"
    assert resolved(stack="trl", quant="int8").adapter_dtype == "bf16"
    assert resolved(stack="trl", method="lora").adapter_dtype == "fp32"
    assert resolved(stack="trl", method="lora", adapter_dtype="bf16").adapter_dtype == "bf16"


def test_a_fact_can_be_set_by_itself():
    facts = resolved(facts={"cast_embeddings": "no"})
    assert facts.cast_norms
    assert not facts.cast_embeddings


def test_a_job_field_overrides_the_stack():
    assert not resolved(amp=False).autocast
    assert resolved(adapter_dtype="bf16").adapter_dtype == "bf16"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"stack": "no-such"}, UsageError, "there is no stack 'no-such'; use one of hf, trl, plain"),
        ({"stack": "trl", "facts": {"fused_head": "no"}}, UnsupportedError, "the stack trl cannot run fused_head=no"),
        ({"stack": "plain", "facts": {"fused_head": "yes"}}, UnsupportedError, "plain cannot run fused_head=yes"),
        ({"facts": {"trainer_loop": "no"}}, UnsupportedError, "the stack hf cannot run trainer_loop=no"),
        (
            {"stack": "hf@transformers=4.40.0"},
            UnsupportedError,
            "not known with transformers 4.40.0; .*5.23.0; or .*4.48.1",
        ),
        ({"stack": "hf@transformers=4.48.1,peft=0.21.2"}, UnsupportedError, "transformers 4.48.1 with peft 0.21.2"),
        ({"stack": "hf@transformers"}, UsageError, "'transformers' names no version"),
        ({"stack": "hf@no_library=1"}, UsageError, "names no library of the stack hf"),
        ({"facts": {"no_such": "yes"}}, UsageError, "there is no fact 'no_such'"),
        ({"facts": {"cast_norms": "bf8"}}, UsageError, "the fact cast_norms is 'bf8', but must be one of fp32, no"),
        ({"facts": {"cast_norms": "fp32"}, "method": "lora"}, UsageError, "base of method lora is not quantized"),
        ({"facts": {"cast_norms": "fp32"}, "stack": "plain"}, UsageError, "which the stack plain leaves out"),
        ({"facts": {"autocast": "yes"}, "amp": False}, UsageError, "set only one of them"),
    ],
)
def test_what_a_stack_cannot_run_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        resolved(**fields)


def test_the_tested_versions_can_be_named():
    assert resolved(stack="hf@transformers=5.23.0").versions["transformers"] == "5.23.0"
