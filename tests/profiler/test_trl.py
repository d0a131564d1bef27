"""TRL's SFTTrainer on the phantom: its fused head scores every labelled position and nothing else, and is seen to."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from qmem.catalogue import find_model
from qmem.errors import UnavailableError, UnsupportedError
from qmem.estimator import estimate
from qmem.job import make_job
from qmem.ledger import Kind
from qmem.profiler import profile
from qmem.profiler.environment import worker_environment
from qmem.profiler.protocol import Request

pytestmark = pytest.mark.libraries
on_phantom = pytest.mark.usefixtures("phantom")

FAMILIES = ("Llama-3.2-1B", "Mistral-7B-v0.1", "gemma-2b")
TINY = {"num_hidden_layers": 2, "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 64,
        "num_attention_heads": 8, "num_key_value_heads": 2}  # fmt: skip
TILE_WORDS = 32768


@on_phantom
@pytest.mark.parametrize("model", FAMILIES)
def test_runs_of_each_family_are_clean(model, a100, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**find_model(model).config, **TINY}))
    ledger = profile(make_job({"model": str(tmp_path), "stack": "trl", "seq": 128}), phantom=a100, steps=2)
    assert (ledger.state, ledger.ended, ledger.warnings) == ("clean", "complete", ())


@on_phantom
def test_the_tiles_of_the_head_are_at_the_peak_and_are_the_estimates(profiled, a100):
    ledger = profiled(stack="trl", batch=2)
    estimated = estimate(ledger.job, a100)
    tiles = [
        [item for item in one.at(one.peak.moment) if item.n_bytes == 2 * 255 * TILE_WORDS * 2]
        for one in (ledger, estimated)
    ]
    assert [[item.kind for item in found] for found in tiles] == [[Kind.LOGITS], [Kind.LOGITS]]
    assert "trl/kernels/chunked_logprob.py" in tiles[0][0].because
    assert estimated.peak.requested_bytes == ledger.peak.requested_bytes


@on_phantom
def test_with_half_of_the_labels_left_out_half_of_the_positions_are_scored(small_job):
    job = small_job(stack="trl", batch=2)
    all_labelled, half_labelled = (steps_with(job, unlabelled) for unlabelled in (0, job.seq // 2))
    assert all_labelled["scored"] == [2 * (job.seq - 1)]
    assert half_labelled["scored"] == [2 * job.seq // 2]
    assert all_labelled["state"] == half_labelled["state"] == "clean"
    for phase in ("loss", "backward"):
        assert half_labelled["peaks"][phase] < all_labelled["peaks"][phase]


def steps_with(job, unlabelled):
    request = msgspec.json.encode(Request(job=job, phantom="a100-80", steps=2)).decode()
    script = Path(__file__).with_name("scored_positions.py")
    printed = subprocess.run(
        [sys.executable, script, request, str(unlabelled)],
        env=worker_environment(job), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(printed.stdout.splitlines()[-1])


@on_phantom
def test_adapters_are_16_bit_unless_they_are_set_to_be_not(profiled):
    def dtypes(**facts):
        ledger = profiled(stack="trl", **facts)
        adapters = [item for item in ledger.items if item.kind is Kind.ADAPTER and item.dies is None]
        return {item.because.rpartition("(")[2] for item in adapters}

    assert dtypes(batch=2) == {"bf16)"}
    assert dtypes(facts={"adapter_dtype": "fp32"}) == {"fp32)"}


def test_without_the_extra_it_is_named(small_job, a100, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UnavailableError, match=r"a profile needs trl.*pip install 'qmem-planner\[trl\]'"):
        profile(small_job(stack="trl"), phantom=a100)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"facts": {"fused_head": "no"}}, "the stack trl cannot run fused_head=no"),
        ({"facts": {"attention_mask": "no"}}, "the stack trl cannot run attention_mask=no"),
        ({"optimizer": "adamw_32bit"}, "the stack trl has no optimizer adamw_32bit"),
        ({"targets": ["q_proj", "lm_head"]}, "leave lm_head out of the targets"),
    ],
)
def test_what_the_sft_trainer_cannot_run_is_refused(small_job, a100, fields, message):
    with pytest.raises(UnsupportedError, match=message):
        profile(small_job(stack="trl", **fields), phantom=a100)
