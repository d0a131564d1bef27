"""Experts on the phantom: balanced routing is assumed and said, and nothing else passes for known."""

from pathlib import Path

import pytest
from phantom_process import run_script

from qmem.catalogue import find_gpu, find_model
from qmem.job import make_job
from qmem.ledger import Kind
from qmem.profiler import profile

pytestmark = pytest.mark.libraries

EXPERTS = Path(__file__).with_name("scripts") / "experts.py"
GROUPED = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe", "phimoe", "glm4_moe", "deepseek_v2",
           "deepseek_v3", "qwen3_next")  # fmt: skip


@pytest.fixture(scope="module")
def on_a100():
    return run_script(EXPERTS, "a100-80")


@pytest.fixture(scope="module")
def on_h100():
    return run_script(EXPERTS, "h100")


@pytest.mark.parametrize("family", GROUPED)
def test_where_the_library_reads_the_group_ends_the_result_is_assumed(on_a100, family):
    outcome = on_a100["balanced"][family]
    assert (outcome["implementation"], outcome["state"]) == ("grouped_mm", "assumed")
    assert [why.partition(":")[0] for why in outcome["why"]] == ["balanced routing"]


def test_where_a_kernel_takes_the_group_ends_nothing_is_read_and_the_result_is_clean(on_h100):
    assert {on_h100["balanced"][family]["state"] for family in GROUPED} == {"clean"}


@pytest.mark.parametrize("family", ["llama", "llama4_text"])
def test_a_model_without_experts_or_with_all_of_them_for_every_token_is_clean(on_a100, family):
    assert on_a100["balanced"][family]["state"] == "clean"


def test_without_the_assumption_the_result_is_tainted(on_a100):
    assert {outcome["state"] for outcome in on_a100["as_it_is"].values()} == {"tainted"}
    assert on_a100["eager_as_it_is"]["state"] == "tainted"


def test_no_expert_has_two_tokens_more_than_another_and_no_token_one_expert_twice(on_a100):
    for family, routed in on_a100["routed"].items():
        assert routed["differ"], family
        assert routed["counts"], family
        for counts in routed["counts"]:
            assert max(counts) - min(counts) <= 1, family
            assert len({sum(counts) for counts in routed["counts"]}) == 1, family


def test_a_recomputed_layer_is_routed_again(on_a100):
    two_layers, forward_and_recomputation = 2, 2
    assert len(on_a100["routed"]["mixtral"]["counts"]) == two_layers * forward_and_recomputation


def test_an_unknown_routing_reaches_no_expert_and_would_read_low(on_a100):
    assert on_a100["eager_as_it_is"]["peak"] < on_a100["eager"]["peak"]


def test_copies_of_the_chosen_experts_depend_on_no_value(on_a100):
    assert on_a100["batched_mm"]["state"] == "clean"


@pytest.fixture(scope="module")
def ledger(phantom, small_mixture):  # noqa: ARG001 - skips where the phantom cannot run
    job = make_job({"model": str(small_mixture), "rank": 4, "seq": 128})
    return profile(job, phantom=find_gpu("a100-80"), steps=2)


@pytest.fixture(scope="module")
def small_mixture(write_model):
    small = {"num_hidden_layers": 2, "hidden_size": 256, "moe_intermediate_size": 64, "num_experts": 16}
    return write_model(find_model("Qwen3-30B-A3B").config, **small, vocab_size=2048)


def test_a_profile_says_that_routing_is_assumed_and_what_that_means(ledger):
    assert (ledger.state, ledger.ended) == ("assumed", "complete")
    assert (
        "assumed: balanced routing: tokens take the 16 experts of a layer in turn, 8 each, so that all experts have "
        "equally many; a trained router is uneven"
    ) in ledger.assumptions
    assert not [warning for warning in ledger.warnings if "tainted" in warning]


def test_experts_that_preparation_casts_are_counted_in_fp32(ledger):
    kinds = {item.owner: (item.kind, item.n_bytes) for item in ledger.items if item.dies is None}
    owner = "model.layers.{0..1}.mlp.experts.down_proj"
    assert kinds[owner] == (Kind.WEIGHT_32BIT, 2 * 16 * 256 * 64 * 4)


def test_the_memory_of_experts_is_explained(ledger):
    assert not [item for item in ledger.items if item.kind is Kind.UNEXPLAINED]
    assert any(item.owner == "mlp.experts" and item.born.step for item in ledger.items)
