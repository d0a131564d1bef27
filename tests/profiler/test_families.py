"""A model of every kind of family on the phantom: every tensor has its name, and nothing is left unexplained."""

import re

import pytest

from qmem.architecture import adapt, describe
from qmem.catalogue import find_model
from qmem.errors import UnsupportedError
from qmem.job import make_job
from qmem.ledger import Kind
from qmem.ledger.series import series_name
from qmem.profiler import profile

pytestmark = pytest.mark.libraries

FAMILIES = {
    "gpt2": ("openai-community/gpt2", {"n_layer": 2}, {"dropout": 0.1}),  # Conv1D, dropout, learned positions
    "gemma2": ("gemma-2-2b", {}, {"attention": "eager", "method": "lora"}),  # capped scores and logits, tied head
    "gemma4_text": (
        "google/gemma-4-E2B:text_config",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": 2048,
        },
        {},
    ),  # embeddings of layers, shared keys and values
    "phi3": ("Phi-3-mini-4k-instruct", {"pad_token_id": None}, {}),  # fused queries, keys and values
    "falcon": ("falcon-7b", {}, {"stack": "plain"}),  # attention beside the MLP
    "opt": ("opt-350m", {}, {"stack": "plain", "method": "full"}),  # projected embeddings
    "mixtral": ("Mixtral-8x7B-v0.1", {"intermediate_size": 1024}, {"stack": "plain"}),  # adapted experts
}


@pytest.fixture(scope="module", params=FAMILIES)
def profiled_family(request, phantom, write_model, a100):  # noqa: ARG001 - skips where the phantom cannot run
    name, changes, fields = FAMILIES[request.param]
    folder = write_model(find_model(name).config, **{"num_hidden_layers": 2, "vocab_size": 2048, **changes})
    job = make_job({"model": str(folder), "seq": 256, **({} if "method" in fields else {"rank": 8}), **fields})
    return profile(job, phantom=a100, steps=2), job


def test_it_runs_to_its_end_and_nothing_taints(profiled_family):
    ledger, job = profiled_family
    is_mixture = describe(find_model(job.model).config).family == "mixtral"
    assert (ledger.state, ledger.ended) == ("assumed" if is_mixture else "clean", "complete")


def test_every_tensor_is_there_under_its_name_and_no_other(profiled_family):
    ledger, job = profiled_family
    architecture = describe(find_model(job.model).config)
    plan = adapt(architecture, job)
    described = {*architecture.parameters, *plan.parameters}
    expected = {series_name(tensor.name) for tensor in (*described, *architecture.buffers)}
    owners = {series_name(re.sub(r"\{0\.\.\d+\}", "0", item.owner)) for item in ledger.items}
    kept = tuple(f"{name}." for name in expected)
    roots = tuple({f"{name.partition('.')[0]}." for name in expected})
    assert expected <= owners
    assert not [name for name in owners - expected if name.startswith(roots) and not name.startswith(kept)]
    assert (ledger.parameters.total, ledger.parameters.trainable) == (plan.total, plan.trainable)


def test_nothing_is_unexplained_and_the_peak_is_told(profiled_family):
    ledger, _ = profiled_family
    assert not [item for item in ledger.items if item.kind is Kind.UNEXPLAINED]
    at_peak = [item for item in ledger.items if item.space == "gpu" and item.alive(ledger.peak.moment)]
    assert sum(item.n_bytes for item in at_peak) == ledger.peak.allocated_bytes


def test_a_family_without_sdpa_is_refused_by_name(phantom, write_model, a100):  # noqa: ARG001
    folder = write_model(find_model("gemma-2-2b").config, num_hidden_layers=2)
    with pytest.raises(UnsupportedError, match="does not run gemma2 with sdpa") as refused:
        profile(make_job({"model": str(folder), "seq": 128}), phantom=a100)
    assert refused.value.hint == "use --attention eager"
