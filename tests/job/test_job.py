"""A job is immutable, checked, and says what is wrong with it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.errors import UnsupportedError, UsageError
from qmem.job import Job, assumed_defaults, make_job


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank is 0, but must be at least 1"),
        ({"rank": "many"}, "rank is 'many'"),
        ({"batch": -1}, "batch is -1"),
        ({"dropout": 1.0}, r"dropout is 1\.0, but must be at least 0 and below 1"),
        ({"quant": "nf5"}, "quant is 'nf5', but must be one of nf4, fp4, int8, none"),
        ({"optimizer": "adam"}, "optimizer is 'adam', but must be one of adamw_torch"),
        ({"block_size": 100}, "block_size is 100, but bitsandbytes has kernels for 32, 64"),
        ({"targets": []}, "targets is empty"),
        ({"method": "full", "quant": "nf4"}, "method full keeps its base in bf16, but quant is nf4"),
        ({"method": "lora", "quant": "int8"}, "method lora keeps its base"),
        ({"method": "full", "adapter_dtype": "bf16"}, "adapter_dtype is set, but method full trains no adapter"),
        ({"method": "full", "dora": True}, "dora is set, but method full trains no adapter"),
        ({"quant": "none"}, "qlora trains an adapter on a quantized base"),
        ({"no_such_field": 1}, "a job has no field 'no_such_field'"),
        ({"facts": "reentrant=yes"}, "facts is"),
    ],
)
def test_what_does_not_hold_together_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        make_job({"model": "m", **fields})


def test_more_than_one_gpu_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="world_size is 2"):
        make_job({"model": "m", "world_size": 2})


@pytest.mark.parametrize(
    ("field", "spelled", "meant"),
    [
        ("dtype", "bfloat16", "bf16"),
        ("compute_dtype", "torch.float16", "fp16"),
        ("quant_storage", "bfloat16", "bf16"),
        ("optimizer", "adamw_bnb_8bit", "adamw_8bit"),
        ("optimizer", "paged_adamw", "paged_adamw_32bit"),
    ],
)
def test_the_libraries_spellings_are_understood(field, spelled, meant):
    assert getattr(make_job({"model": "m", field: spelled}), field) == meant


@pytest.mark.parametrize(("method", "quant"), [("qlora", "nf4"), ("lora", "none"), ("full", "none")])
def test_the_method_decides_what_the_base_is_stored_in(method, quant):
    assert Job(model="m", method=method).effective_quant == quant


def test_a_job_does_not_change():
    job = Job(model="m")
    with pytest.raises(AttributeError):
        job.rank = 16
    assert job.replace(rank=16).rank == 16
    assert job.rank == 8


def test_a_changed_job_is_checked_again():
    with pytest.raises(UsageError, match="rank is 0"):
        Job(model="m").replace(rank=0)


def test_the_defaults_that_were_assumed_are_listed():
    assumed = assumed_defaults(Job(model="m", rank=16, stack="plain"))
    assert "rank" not in assumed
    assert "stack" not in assumed
    assert assumed["optimizer"] == "paged_adamw_32bit"
    assert assumed["double_quant"] is True


@given(rank=st.integers(1, 512), batch=st.integers(1, 64), targets=st.lists(st.text(min_size=1), min_size=1))
def test_a_job_survives_json(rank, batch, targets):
    job = Job(model="m", rank=rank, batch=batch, targets=tuple(targets))
    assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
    assert make_job(msgspec.to_builtins(job)) == job


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("checkpointing", "none", "checkpointing is 'none': Expected `bool`"),
        ("rank", "8", "rank is '8': Expected `int`"),
        ("batch", True, "batch is True: Expected `int`"),
        ("method", "qlor", "method is 'qlor', but must be one of qlora, lora, full"),
        ("targets", ["q_proj", 3], "targets is"),
    ],
)
def test_a_job_made_in_python_is_checked_as_one_from_a_file(field, value, said):
    with pytest.raises(UsageError, match=said):
        Job(model="Qwen3-0.6B", **{field: value})


def test_a_job_made_in_python_takes_the_same_spellings_as_one_from_a_file():
    made = Job(model="Qwen3-0.6B", targets=["q_proj"], dtype="bfloat16", optimizer="paged_adamw")
    assert (made.targets, made.dtype, made.optimizer) == (("q_proj",), "bf16", "paged_adamw_32bit")
    assert made == make_job({"model": "Qwen3-0.6B", "targets": ["q_proj"]})
