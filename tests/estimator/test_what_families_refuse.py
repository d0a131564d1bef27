"""What a config asks for and a family does not walk is refused by name."""

import json

import pytest

from qmem import estimate
from qmem.catalogue import find_model
from qmem.errors import UnsupportedError
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
