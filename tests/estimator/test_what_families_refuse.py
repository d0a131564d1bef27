"""What a config asks for and a family does not walk is refused by name."""

import json

import pytest

from qmem import estimate
from qmem.catalogue import find_model
from qmem.errors import UnsupportedError, UsageError
from qmem.estimator import trace_of
from qmem.job import Job

FEW_LAYERS = {"num_hidden_layers": 2}


def changed(folder, model, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**find_model(model).config, **FEW_LAYERS, **changes}))
    return str(path)


def test_only_eager_attention_can_cap_its_weights(tmp_path):
    with pytest.raises(UnsupportedError, match="attn_logit_softcapping with the attention sdpa") as refused:
        estimate(Job(model="gemma-2-2b", seq=128))
    assert "--attention eager" in refused.value.hint
    without_cap = changed(tmp_path, "gemma-2-2b", attn_logit_softcapping=None)
    assert estimate(Job(model=without_cap, seq=128)).peak.requested_bytes > 0


@pytest.mark.parametrize(("model", "family"), [("gpt-j-6b", "gptj"), ("mpt-7b", "mpt")])
def test_what_transformers_runs_only_eagerly_is_not_estimated_with_sdpa(model, family):
    with pytest.raises(UnsupportedError, match=f"transformers does not run {family} with sdpa") as refused:
        estimate(Job(model=model, seq=128))
    assert refused.value.hint == "use --attention eager"


def test_an_activation_that_is_not_walked_is_named(tmp_path):
    with pytest.raises(UnsupportedError, match="the activation 'mish' is not modelled yet"):
        estimate(Job(model=changed(tmp_path, "Llama-3.2-1B", hidden_act="mish"), seq=128))


def test_attention_to_later_tokens_is_named(tmp_path):
    with pytest.raises(UnsupportedError, match="use_bidirectional_attention, of embedding models"):
        estimate(Job(model=changed(tmp_path, "gemma-3-1b-pt", use_bidirectional_attention=True), seq=128))


def test_null_for_attention_to_later_tokens_means_none(tmp_path):
    model = changed(tmp_path, "gemma-2b", use_bidirectional_attention=None)
    assert (
        trace_of(Job(model=model, seq=128)).sizes == trace_of(Job(model=changed(tmp_path, "gemma-2b"), seq=128)).sizes
    )


E2B = "google/gemma-4-E2B:text_config"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_reentrant_checkpointing_of_layers_that_share_is_named():
    with pytest.raises(UnsupportedError, match="reentrant checkpointing of layers that share keys and values"):
        estimate(Job(model=E2B, seq=128, facts={"reentrant": "yes"}))


def test_shared_keys_without_embeddings_of_the_layers_are_named(tmp_path):
    types = ["full_attention", "sliding_attention", "full_attention"]
    changes = {"num_hidden_layers": 3, "layer_types": types, "num_kv_shared_layers": 1}
    model = changed(tmp_path, E2B, **changes, hidden_size_per_layer_input=0)
    with pytest.raises(UnsupportedError, match="num_kv_shared_layers without hidden_size_per_layer_input"):
        estimate(Job(model=model, seq=128))


def test_a_router_that_returns_two_results_cannot_be_adapted_and_the_others_are_named():
    scout = "Llama-4-Scout-17B-16E-Instruct"
    with pytest.raises(
        UsageError, match=r"targets name model\.layers\.0\.feed_forward\.router, which returns"
    ) as refused:
        estimate(Job(model=scout, seq=128))
    assert refused.value.hint == f"name the other linears: --targets {','.join(LINEARS)}"
    ledger = estimate(Job(model=scout, seq=128, targets=LINEARS), replay="none")
    assert not [sentence for sentence in ledger.assumptions if "balanced routing" in sentence]


def test_the_logits_of_routers_are_named(tmp_path):
    model = changed(tmp_path, "Llama-4-Scout-17B-16E-Instruct", output_router_logits=True)
    with pytest.raises(UnsupportedError, match="output_router_logits"):
        estimate(Job(model=model, seq=128, targets=LINEARS))


def test_adafactor_of_stacks_of_experts_is_named(tmp_path):
    model = changed(tmp_path, "Llama-4-Scout-17B-16E-Instruct", num_local_experts=2)
    with pytest.raises(
        UnsupportedError, match=r"Adafactor of model\.layers\.0\.feed_forward\.experts\.gate_up_proj, a"
    ):
        estimate(Job(model=model, seq=128, method="full", optimizer="adafactor"))
