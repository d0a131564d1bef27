"""The catalogue of models: complete, with sources, and its counts explained."""

import json
import re
import time

import msgspec
import pytest

from qmem.catalogue import all_models, find_model, match_models
from qmem.catalogue.config_file import REMOTE_CODE_TYPES
from qmem.catalogue.models import CatalogueModel, names
from qmem.catalogue.names import short


def test_the_catalogue_holds_189_models_each_with_a_source() -> None:
    assert len({model.id for model in all_models()}) == 189
    assert all(model.source for model in all_models())


def test_every_model_names_its_family_and_its_architecture() -> None:
    for model in all_models():
        assert model.config["model_type"], model.id
        assert model.config["architectures"], model.id


def test_no_name_means_two_models() -> None:
    assert {name: found for name, found in names().items() if len(found) > 1} == {}


def test_a_count_that_differs_from_the_published_one_is_explained_by_the_difference() -> None:
    differing = [m for m in all_models() if m.params_published not in (None, m.params_counted)]
    assert len(differing) == 16
    for model in differing:
        assert model.params_published is not None
        assert f"{abs(model.params_published - model.params_counted):,}" in model.note, model.id


NAMED = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z])")
"""Parameters in a name: ``7B``, ``1.5b``, ``125m``."""

NAME_ROUNDS = 0.12
"""A share that a name may round away before its entry needs a published count or a reason."""

NAMED_OTHERWISE = {
    "Qwen/Qwen2-VL-7B-Instruct": "the name counts the text tower alone",
    "allenai/OLMo-1B-hf": "the name rounds 1.18 B down",
    "bigcode/starcoderbase-1b": "the name rounds 1.14 B down",
}
"""Why a name is far from what is counted, where no published count was found to settle it."""

TWINS = {
    frozenset({"Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2-7B"}),
    frozenset({"Qwen/Qwen2.5-32B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"}),
    frozenset({"meta-llama/Llama-3.3-70B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"}),
    frozenset({"deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1"}),
}
"""Models with one config: a later release, or what was distilled into it."""


def test_a_config_has_as_many_parameters_as_its_name_says_or_as_were_published() -> None:
    far = {model.id for model in all_models() if any(_is_far(name, model) for name in (model.id, *model.aliases))}
    published = {model.id for model in all_models() if model.params_published == model.params_counted}
    assert far - published == NAMED_OTHERWISE.keys()


def _is_far(name: str, model: CatalogueModel) -> bool:
    found = NAMED.search(short(name).lower().replace("_", "."))
    if not found:
        return False
    named = float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]]
    return abs(model.params_counted / named - 1) > NAME_ROUNDS


def test_no_model_has_the_config_of_another_but_the_twins() -> None:
    named: dict[str, set[str]] = {}
    for model in all_models():
        stated = {key: value for key, value in model.config.items() if value is not None}
        named.setdefault(json.dumps(stated, sort_keys=True), set()).add(model.id)
    assert {frozenset(ids) for ids in named.values() if len(ids) > 1} == TWINS


def test_a_tied_head_explains_the_published_count_of_the_small_qwen3() -> None:
    (model,) = (m for m in all_models() if m.id == "Qwen/Qwen3-0.6B")
    head = model.config["vocab_size"] * model.config["hidden_size"]
    assert model.params_published == model.params_counted + head


def test_a_config_belongs_to_whoever_asks_for_it() -> None:
    model = all_models()[0]
    model.config["hidden_size"] = 1
    assert model.config["hidden_size"] != 1


def test_a_filter_matches_every_word_in_id_alias_or_family() -> None:
    assert match_models() == all_models()
    assert {m.id for m in match_models("qwen3 14b")} == {"Qwen/Qwen3-14B"}
    assert {m.model_type for m in match_models("gpt_neox")} == {"gpt_neox"}
    assert match_models("no such model") == ()


def test_the_files_decode_in_a_few_milliseconds() -> None:
    decode = all_models.__wrapped__
    assert min(_seconds(decode) for _ in range(5)) < 0.02


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.libraries
def test_transformers_has_every_family_but_those_marked_as_remote_code() -> None:
    mapping = pytest.importorskip("transformers").CONFIG_MAPPING
    missing = {model.model_type for model in all_models()} - set(mapping.keys())
    assert missing == set(REMOTE_CODE_TYPES)


@pytest.mark.libraries
@pytest.mark.parametrize(
    "name", ["Qwen3-0.6B", "gemma-2-2b", "phi-2", "gpt2", "opt-125m", "pythia-70m", "smollm2-135m"]
)
def test_the_counted_parameters_are_those_of_the_real_model(name: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    found = find_model(name)
    config = transformers.CONFIG_MAPPING[found.config["model_type"]].from_dict(found.config)
    with torch.device("meta"):
        model = getattr(transformers, found.config["architectures"][0])(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == found.params_counted


def test_models_json_refuses_a_key_it_does_not_know() -> None:
    entry = msgspec.json.encode(
        {"id": "a/b", "aliases": [], "params_counted": 1, "source": "x", "config": {}, "typo": 1}
    )
    with pytest.raises(msgspec.ValidationError, match="typo"):
        msgspec.json.decode(entry, type=type(all_models()[0]))
