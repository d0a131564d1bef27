"""Mixtures of experts: what is said of the routing, what is refused, and what decides the memory of experts."""

import json

import pytest

from qmem.catalogue import find_gpu, find_model
from qmem.errors import UnsupportedError
from qmem.estimator import estimate, peak_requested
from qmem.estimator.cub import sort_pairs_bytes
from qmem.job import Job
from qmem.ledger import Kind

SMALL = {"num_hidden_layers": 2, "vocab_size": 2048, "hidden_size": 256}
MODELS = {
    "Qwen/Qwen3-30B-A3B": {**SMALL, "num_experts": 16, "moe_intermediate_size": 96, "num_attention_heads": 4},
    "mistralai/Mixtral-8x7B-v0.1": {**SMALL, "num_attention_heads": 8, "intermediate_size": 192},
    "Qwen/Qwen1.5-MoE-A2.7B": {**SMALL, "num_experts": 12, "moe_intermediate_size": 96},
    "deepseek-ai/DeepSeek-V2-Lite": {**SMALL, "n_routed_experts": 12, "moe_intermediate_size": 96,
                                     "first_k_dense_replace": 0},
    "openai/gpt-oss-20b": {**SMALL, "num_local_experts": 8, "quantization_config": None, "intermediate_size": 192,
                           "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """A job of a small model of a family."""

    def make(model, changes=None, **fields):
        config = {**find_model(model).config, **MODELS[model], **(changes or {})}
        (tmp_path / "config.json").write_text(json.dumps(config))
        attention = "eager" if "gpt-oss" in model else "sdpa"
        return Job(**{"model": str(tmp_path), "rank": 4, "seq": 128, "attention": attention, **fields})

    return make


@pytest.mark.parametrize("model", MODELS)
def test_an_estimate_of_experts_says_that_routing_is_assumed_to_be_balanced(small, model):
    assert any("balanced routing" in sentence for sentence in estimate(small(model)).assumptions)


def test_an_estimate_without_experts_assumes_nothing_of_routing():
    assert not any("routing" in sentence for sentence in estimate(Job(model="SmolLM2-135M", seq=64)).assumptions)


@pytest.mark.parametrize(
    ("model", "changes", "match"),
    [
        ("Qwen/Qwen3-30B-A3B", {"output_router_logits": True}, "the loss that balances the experts"),
        ("mistralai/Mixtral-8x7B-v0.1", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1 is not modelled"),
        ("deepseek-ai/DeepSeek-V2-Lite", {"topk_method": "group_limited_greedy"}, "topk_method = 'group_limited"),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_name(small, model, changes, match):
    with pytest.raises(UnsupportedError, match=match):
        estimate(small(model, changes))


def test_gpt_oss_is_refused_with_sdpa_as_transformers_refuses_it(small):
    with pytest.raises(UnsupportedError, match="GPT-OSS with the attention sdpa"):
        estimate(small("openai/gpt-oss-20b", attention="sdpa"))


def test_a_card_that_cannot_multiply_groups_is_refused(small):
    with pytest.raises(UnsupportedError, match=r"experts of a mixture on a card of compute capability 7\.5"):
        estimate(small("Qwen/Qwen3-30B-A3B"), find_gpu("t4"))


def test_narrow_values_are_refused_where_cudnn_would_run_them(small):
    job = small("deepseek-ai/DeepSeek-V2-Lite")
    with pytest.raises(UnsupportedError, match=r"values are narrower than its keys .* capability 9\.0"):
        estimate(job, find_gpu("h100"))
    assert estimate(job.replace(attention="eager"), find_gpu("h100")).peak.requested_bytes


@pytest.mark.parametrize("model", MODELS)
def test_more_experts_a_token_take_more_memory(small, model):
    jobs = (small(model, {"num_experts_per_tok": n}, checkpointing=False, seq=512) for n in (1, 6))
    few, many = map(peak_requested, jobs)
    assert many > few


def test_adapted_experts_hold_a_whole_adapted_weight_besides_their_own(small):
    """Without checkpointing every layer keeps the weights that ``baddbmm`` made, in the dtype of the base."""
    model, plain = "Qwen/Qwen3-30B-A3B", {"method": "lora", "stack": "plain", "checkpointing": False}
    adapted = peak_requested(small(model, **plain))
    left_alone = peak_requested(small(model, targets=("q_proj", "v_proj"), **plain))
    experts = 2 * (3 * 16 * 96 * 256) * 2
    assert adapted - left_alone > experts


def test_experts_stay_out_of_4_bit_and_become_fp32_in_preparation(small):
    ledger = estimate(small("Qwen/Qwen3-30B-A3B"))
    stay = [item for item in ledger.items if "mlp.experts" in item.owner and item.dies is None]
    assert {item.kind for item in stay} == {Kind.WEIGHT_32BIT, Kind.ADAPTER, Kind.OPTIMIZER_STATE}
    assert sum(item.n_bytes for item in stay if item.kind is Kind.WEIGHT_32BIT) == 2 * (3 * 16 * 96 * 256) * 4


def test_a_sort_of_many_indices_needs_room_for_a_copy_of_keys_and_values():
    assert sort_pairs_bytes(2048, 64, (8, 0)) == 1
    assert sort_pairs_bytes(16384, 64, (8, 0)) == 284_159
    assert sort_pairs_bytes(131072, 64, (9, 0)) == 2_143_743
