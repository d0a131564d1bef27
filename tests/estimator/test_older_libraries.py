"""The walk under older libraries: what was compared with their recordings is walked, the rest is refused by name."""

import pytest

from qmem import estimate
from qmem.errors import UnsupportedError
from qmem.job import make_job

OLDER = {"model": "Llama-3.2-1B", "seq": 512, "stack": "hf@transformers=4.48.1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "Qwen3-0.6B"}, "the step of qwen3 under hf@transformers=4.48.1"),
        ({"model": "gpt2"}, "the step of gpt2 under"),
        ({"attention": "eager"}, "eager attention under hf@transformers=4.48.1"),
        ({"quant": "int8"}, "int8 under"),
        ({"dora": True}, "DoRA under"),
        ({"compute_dtype": "fp16"}, "fp16 under"),
        ({"modules_to_save": ("lm_head",)}, "modules_to_save under"),
        ({"model": "Mistral-7B-v0.1", "seq": 4096}, "a sliding window of 4096 at 4096 tokens"),
    ],
)
def test_what_was_not_recorded_there_is_refused(changes, message):
    with pytest.raises(UnsupportedError, match=message):
        estimate(make_job({**OLDER, **changes}))


def test_the_older_loss_holds_the_shifted_logits_besides():
    batch, seq, vocab = 2, 512, 128_256
    job = {**OLDER, "batch": batch, "facts": {"kbit_preparation": "no"}}
    older, newest = (estimate(make_job({**job, "stack": stack})) for stack in (OLDER["stack"], "hf"))
    shifted = batch * (seq - 1) * vocab * 4
    excess = older.peak.requested_bytes - newest.peak.requested_bytes
    assert 0 < excess < shifted


def test_versions_are_told_with_the_estimate():
    assert estimate(make_job(OLDER)).versions["transformers"] == "4.48.1"
