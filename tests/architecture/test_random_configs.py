"""Random small configs of every family, described as transformers builds them and adapted as peft adapts them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meta_models import build_meta_model, small_config, tensors

from qmem.architecture import FAMILIES, adapt, describe
from qmem.errors import UsageError
from qmem.job import make_job

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def configs(draw):
    family = draw(st.sampled_from(FAMILIES))
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    kv_heads = draw(st.sampled_from([n for n in (1, 2, 3, 6) if heads % n == 0]))
    width = 2 * heads * draw(st.integers(1, 9))
    inner, layers, vocab = draw(st.integers(1, 70)), draw(st.integers(1, 4)), draw(st.integers(2, 300))
    tied = draw(st.booleans())
    if family in ("gpt2", "gpt_bigcode", "gptj"):
        return {"model_type": family, "n_embd": width, "n_head": heads, "n_layer": layers, "vocab_size": vocab,
                "n_positions": draw(st.integers(1, 99)), "n_inner": inner, "tie_word_embeddings": tied,
                "multi_query": draw(st.booleans()), "rotary_dim": 2}  # fmt: skip
    if family == "t5":  # its config class takes both its own names and the usual ones, and the last one wins
        return {**small_config(family), "d_model": width, "d_ff": inner, "num_layers": layers, "num_heads": heads,
                "vocab_size": vocab}  # fmt: skip
    if family == "mpt":  # the same
        return {**small_config(family), "d_model": width, "n_layers": layers, "n_heads": heads, "vocab_size": vocab,
                "tie_word_embeddings": tied}  # fmt: skip
    return {**small_config(family), "hidden_size": width, "intermediate_size": inner, "ffn_dim": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "vocab_size": vocab, "attention_bias": draw(st.booleans()), "tie_word_embeddings": tied,
            "mlp_only_layers": draw(st.just([0]) | st.none())}  # fmt: skip


@pytest.mark.libraries
@few
@given(config=configs())
def test_any_config_is_described_as_transformers_builds_it(config):
    described, model = describe(config), build_meta_model(config)
    assert tensors(model.named_parameters()) == [(p.name, p.shape) for p in described.parameters]
    assert tensors(model.named_buffers()) == [(b.name, b.shape) for b in described.buffers]


@settings(deadline=None)
@given(config=configs())
def test_names_are_unique_and_linears_have_their_weights(config):
    described = describe(config)
    names = [p.name for p in described.parameters]
    assert len(set(names)) == len(names)
    weights = {p.name: p.shape for p in described.parameters}
    untied = [x for x in described.linears if not (described.tied_head and x.name == described.head)]
    assert all(weights[f"{x.name}.weight"] == x.weight_shape for x in untied)


@settings(deadline=None)
@given(config=configs(), rank=st.integers(1, 4))
def test_the_adapter_grows_by_the_rank(config, rank):
    wide = {"hidden_size": 48, "n_embd": 48, "intermediate_size": 96, "n_inner": 96, "ffn_dim": 96}
    described = describe({**config, **wide})
    one, more = (adapt(described, make_job({"model": "any", "rank": r})) for r in (1, rank))
    assert more.trainable == rank * one.trainable
    assert more.total - described.n_parameters == more.trainable


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=2)
rope = st.fixed_dictionaries({}, optional={"rope_type": json, "type": json, "partial_rotary_factor": json, "x": json})
FIELDS = sorted({name for family in FAMILIES for name in describe(small_config(family)).config})
OTHERS = ["model_type", "rope_scaling", "rope_parameters", "layer_types", "text_config", "quantization_config"]


@settings(max_examples=200, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    changes=st.dictionaries(st.sampled_from(FIELDS + OTHERS), json | rope, min_size=1, max_size=3),
)
def test_any_value_in_any_field_is_read_or_refused_in_one_line(family, changes):
    try:
        assert describe({**small_config(family), **changes}).n_parameters > 0
    except UsageError as error:
        assert "\n" not in error.message  # noqa: PT017 (either way of the road is right, each is checked)


@settings(deadline=None)
@given(targets=st.text(max_size=12) | st.lists(st.text(max_size=8), min_size=1, max_size=3).map(tuple))
def test_any_targets_match_something_or_are_refused(targets):
    job = make_job({"model": "any", "targets": targets, "rank": 1})
    try:
        assert adapt(describe(small_config("qwen3_moe")), job).adapted
    except UsageError as error:
        assert error.hint or "valid regular expression" in error.message  # noqa: PT017 (as above)
