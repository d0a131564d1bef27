"""Which linears bitsandbytes replaces, compared with transformers' own replacement."""

import pytest
from meta_models import build_meta_model, small_config

from qmem.architecture import describe, quantized_modules
from qmem.errors import UsageError
from qmem.job import make_job

SKIPS = [(), ("lm_head",), ("q_proj", "lm_head"), (r".*\.1\.", "lm_head"), ("model.layers.1", "lm_head")]


def replaced_names(config, skip):
    torch = pytest.importorskip("torch")
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    model = build_meta_model(config)
    kept = HfQuantizer.get_modules_to_not_convert(model, list(skip) or None, model._keep_in_fp32_modules)
    with torch.device("meta"):
        replace_with_bnb_linear(model, kept, BitsAndBytesConfig(load_in_4bit=True))
    return [name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]


def planned_names(config, **fields):
    job = make_job({"model": "any", **fields})
    return [linear.name for linear in quantized_modules(describe(config), job)]


@pytest.mark.libraries
@pytest.mark.parametrize("skip", SKIPS, ids=" ".join)
def test_the_linears_that_bitsandbytes_replaces_are_planned(family, skip):
    config = small_config(family)
    assert planned_names(config, skip_modules=skip) == replaced_names(config, skip)


def test_the_head_stays_in_16_bit_by_default():
    assert "lm_head" not in planned_names(small_config("llama"))


def test_a_list_of_modules_to_skip_takes_the_place_of_the_default():
    names = planned_names(small_config("llama"), skip_modules=("q_proj",))
    assert "lm_head" in names
    assert not any(name.endswith("q_proj") for name in names)


def test_a_tied_head_is_never_quantized():
    config = {**small_config("llama"), "tie_word_embeddings": True}
    assert "lm_head" not in planned_names(config, skip_modules=("q_proj",))


def test_transformers_5_leaves_falcon_in_16_bit_and_transformers_4_did_not():
    described, job = describe(small_config("falcon")), make_job({"model": "any"})
    assert quantized_modules(described, job) == ()
    assert len(quantized_modules(described, job, subclasses=True)) == 4 * described.n_layers


def test_lora_on_a_16_bit_base_quantizes_nothing():
    assert planned_names(small_config("llama"), method="lora") == []


def test_an_invalid_pattern_to_skip_is_refused():
    with pytest.raises(UsageError, match=r"skip_modules .* no valid regular expressions"):
        planned_names(small_config("llama"), skip_modules=("(",))
