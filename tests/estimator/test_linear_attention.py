"""The step of models with linear attention: what their goldens do not show."""

import json

import pytest

from qmem.catalogue import find_model
from qmem.estimator import estimate, peak_requested
from qmem.estimator.delta_rule import CHUNK
from qmem.estimator.middle_chunks import FIRST, LAST
from qmem.job import make_job

SIZES = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "vocab_size": 1024}
MANY_CHUNKS = 2 * (FIRST + LAST) * CHUNK - 10


@pytest.fixture(params=["Qwen3.5-0.8B", "Qwen3-Next-80B-A3B-Instruct"])
def model(request, tmp_path):
    """A folder with the config of a model, cut to one layer of each kind."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2} if "Next" in request.param else {}
    config = {**find_model(request.param).config, **SIZES, **experts}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def readings(ledger):
    return {(r.moment.step, r.moment.phase, r.waterline, r.measure): r.n_bytes for r in ledger.readings}


@pytest.mark.parametrize(
    "fields",
    [
        {"batch": 2},
        {"stack": "plain", "method": "lora", "targets": ["out_proj"], "checkpointing": False},
        {"stack": "plain", "method": "full", "dtype": "fp32", "batch": 2, "seq": MANY_CHUNKS + 10},
    ],
)
def test_a_walk_that_passes_over_chunks_in_the_middle_has_the_peaks_of_a_full_one(model, fields, monkeypatch):
    job = make_job({"model": model, "seq": MANY_CHUNKS, **fields})
    brief, steady = readings(estimate(job, replay="none")), peak_requested(job)
    monkeypatch.setattr("qmem.estimator.delta_rule.n_in_the_middle", lambda _: 0)
    assert brief == readings(estimate(job, replay="none"))
    assert steady == peak_requested(job)


def test_more_tokens_need_more_memory_in_every_chunk(model):
    peaks = [peak_requested(make_job({"model": model, "seq": seq})) for seq in (CHUNK, CHUNK + 1, 2 * CHUNK + 1)]
    assert peaks == sorted(set(peaks))


def test_the_plan_says_that_linear_attention_runs_without_its_packages(model):
    (sentence,) = (a for a in estimate(make_job({"model": model, "seq": 64})).assumptions if "linear attention" in a)
    assert "without flash-linear-attention and causal-conv1d" in sentence


def test_a_qwen_that_sees_images_is_planned_as_its_text_model():
    found = find_model("Qwen3.5-9B")
    assert found.config["model_type"] == "qwen3_5_text"
    assert "the text model of Qwen/Qwen3.5-9B alone" in found.notes[-1]
