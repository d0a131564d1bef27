"""Targets, ranks and saved modules that make no sense for a model: one clear line each."""

import pytest
from meta_models import small_config

from qmem.architecture import adapt, describe
from qmem.errors import UsageError
from qmem.job import make_job


def plan(family="llama", **fields):
    return adapt(describe(small_config(family)), make_job({"model": "any", **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("q_porj",)}, "targets: 'q_porj' matches no module; this model has q_proj, k_proj, v_proj,"),
        ({"targets": ("q_proj", "c_attn", "wte")}, "targets: 'c_attn', 'wte' match no module"),
        ({"targets": "q_proj"}, "targets: 'q_proj' matches no module as a regular expression for whole module names"),
        ({"targets": ".*(q_proj"}, r"'.\*\(q_proj' is not a valid regular expression: missing \)"),
        ({"targets": ("mlp",)}, "match the module model.layers.0.mlp, but peft adapts linears and embeddings only"),
        ({"targets": ".*norm"}, "match the module model.layers.0.input_layernorm, but peft adapts linears and"),
        ({"rank": 65}, "rank 65 is above model.layers.0.self_attn.q_proj, a matrix of 64 x 64; use .* at most 64"),
        ({"rank": 65, "targets": ("embed_tokens",)}, "rank 65 is above model.embed_tokens, a matrix of 64 x 320"),
        ({"modules_to_save": ("classifier",)}, "modules_to_save: 'classifier' matches no module"),
        ({"modules_to_save": ("layers",)}, "modules_to_save names model.layers, which is a list of layers"),
        ({"modules_to_save": ("mlp", "mlp.up_proj")}, "mlp.up_proj, which .* lies in another module"),
        ({"modules_to_save": ("act_fn",)}, "modules_to_save names .*act_fn, which has no parameters to train"),
        ({"modules_to_save": ("q_proj",), "targets": ("q_proj",)}, "targets: 'q_proj' matches no module"),
        ({"modules_to_save": ("proj",)}, "down_proj is named by targets and by modules_to_save"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        plan(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("w1",)}, "targets name w1 without w3, but the experts hold both as one parameter, gate_up_proj"),
        ({"dora": True}, "peft cannot use DoRA on model.layers.0.mlp.gate.weight"),
        ({"dropout": 0.1, "targets": ("w2",)}, "peft cannot use dropout on model.layers.0.mlp.experts.down_proj"),
        ({"rank": 33, "targets": ("w1", "w3")}, "rank 66 is above .*gate_up_proj, .* 192 x 64; use .* at most 32"),
        ({"rank": 17, "targets": ("gate",)}, "rank 17 is above model.layers.0.mlp.gate.weight, a matrix of 16 x 64"),
        ({"modules_to_save": ("mlp",)}, "model.layers.0.mlp is named by targets and by modules_to_save"),
        ({"targets": ".*nothing"}, "targets: '.\\*nothing' matches no module as a regular expression"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_in_fused_experts_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        plan("mixtral", **fields)


def test_the_rank_may_be_as_large_as_the_smaller_side():
    assert {module.rank for module in plan(rank=64).adapted} == {64}


def test_all_linear_may_be_above_a_router_and_says_so():
    (warning,) = plan("mixtral", rank=24).warnings
    assert warning.startswith("rank 24 is above routers such as model.layers.0.mlp.gate.weight (16 x 64)")


def test_experts_that_all_linear_does_not_reach_are_mentioned():
    warnings = plan("qwen2_moe", rank=8).warnings
    assert any("the experts are fused parameters, which all-linear does not reach" in text for text in warnings)


def test_an_ordinary_job_has_no_warnings():
    assert plan(rank=8).warnings == ()
