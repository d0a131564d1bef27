"""What is refused before a worker is started."""

from pathlib import Path

import pytest

from qmem.errors import UnsupportedError, UsageError
from qmem.profiler import profile


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
