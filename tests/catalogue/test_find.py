"""What a typed name means: spellings, mirrors, refusals, and the nearest three."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.catalogue import all_models, find_model, match_models
from qmem.catalogue.names import FORMATS, stored_format
from qmem.errors import UnsupportedError, UsageError

MODELS = st.sampled_from(all_models())


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may depend on whether this machine has a network."""
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)


def spellings(model) -> list[str]:
    return [name for full in (model.id, *model.aliases) for name in (full, full.rpartition("/")[2])]


def test_every_id_alias_and_short_name_in_any_case_means_its_model() -> None:
    for model in all_models():
        for name in spellings(model):
            if stored_format(name):
                continue
            for spelling in (name, name.lower(), name.upper()):
                assert find_model(spelling).id == model.id, spelling


@given(MODELS, st.data())
def test_case_blanks_and_underscores_make_no_difference(model, data) -> None:
    name = data.draw(st.sampled_from([n for n in spellings(model) if not stored_format(n)]))
    cases = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    blanks = data.draw(st.sampled_from("- _"))
    varied = "".join(c.upper() if up else c.lower() for c, up in zip(name, cases, strict=True)).replace("-", blanks)
    assert find_model(f" {varied} ").id == model.id


def test_an_id_needs_no_note_about_its_name() -> None:
    assert find_model("Qwen/Qwen3-14B").notes == ()
    assert find_model("qwen3-14b").notes == ()


def test_the_found_model_carries_config_count_and_source() -> None:
    found = find_model("qwen3-14b")
    assert (found.params_counted, found.config["hidden_size"]) == (14_768_307_200, 5120)
    assert found.source.startswith("inference-sim/inference-sim:")


@pytest.mark.parametrize("suffix", ["-bnb-4bit", "-unsloth-bnb-4bit", "-BF16", ""])
def test_a_mirror_is_planned_as_its_base_and_says_so(suffix: str) -> None:
    name = f"unsloth/Qwen3-14B{suffix}"
    found = find_model(name)
    assert found.id == "Qwen/Qwen3-14B"
    assert found.notes[0] == f"{name} is a mirror of Qwen/Qwen3-14B"


def test_the_mirror_of_a_stranger_is_an_assumption() -> None:
    assert find_model("acme/Qwen3-14B").notes == ("acme/Qwen3-14B is taken as a mirror of Qwen/Qwen3-14B",)


def test_a_variant_says_whose_shapes_it_has() -> None:
    (note, *_) = find_model("unsloth/Llama-3.2-1B-Instruct").notes
    assert note == "unsloth/Llama-3.2-1B-Instruct is planned as meta-llama/Llama-3.2-1B, which has its shapes"


def test_dynamic_4bit_weights_are_said_to_differ() -> None:
    assert any("16 bit" in note for note in find_model("unsloth/Qwen3-14B-unsloth-bnb-4bit").notes)


def test_unsure_fields_and_notes_are_passed_on() -> None:
    notes = find_model("Qwen2.5-1.5B").notes
    assert "unsure in the catalogue: max_position_embeddings" in notes
    assert any("131072" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "stored", "base"),
    [
        ("Qwen/Qwen3-14B-AWQ", "AWQ", "Qwen/Qwen3-14B"),
        ("Qwen/Qwen3-14B-FP8", "FP8", "Qwen/Qwen3-14B"),
        ("unsloth/Qwen3-14B-GGUF", "GGUF", "Qwen/Qwen3-14B"),
        ("Qwen3-14B-Q4_K_M.gguf", "GGUF", "Qwen/Qwen3-14B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "GPTQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("TheBloke/Llama-2-70B-GPTQ", "GPTQ", "meta-llama/Llama-2-70b-hf"),
        ("Qwen/Qwen-7B-Chat-Int4", "Int4", "Qwen/Qwen-7B"),
        ("Qwen/Qwen-7B-Chat-Int8", "Int8", "Qwen/Qwen-7B"),
        ("turboderp/Mistral-7B-v0.1-exl2", "EXL2", "mistralai/Mistral-7B-v0.1"),
        ("mlx-community/Qwen3-14B-4bit", "MLX", "Qwen/Qwen3-14B"),
        ("acme/Qwen3-14B-MXFP4", "MXFP4", "Qwen/Qwen3-14B"),
        ("nm/Qwen3-14B-quantized.w4a16", "compressed-tensors", "Qwen/Qwen3-14B"),
    ],
)
def test_weights_of_another_format_are_refused_with_the_command_for_their_base(name, stored, base) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        find_model(name)
    assert refusal.value.message == f"{name} stores {stored} weights, which qmem does not model"
    assert refusal.value.hint == f"plan its base in nf4: qmem estimate {base} --quant nf4"
    assert find_model(base).id == base


@given(MODELS, st.sampled_from(sorted(FORMATS)), st.sampled_from("-_"))
def test_no_name_that_announces_a_format_is_ever_planned(model, word, separator) -> None:
    with pytest.raises(UnsupportedError, match=r"stores .* weights, which qmem does not model"):
        find_model(f"{model.id}{separator}{word}")


def test_an_unknown_base_gets_a_command_to_fill_in() -> None:
    with pytest.raises(UnsupportedError, match="qmem estimate ORGANISATION/BASE --quant nf4"):
        find_model("acme/secret-9000b-AWQ")


@pytest.mark.parametrize(("name", "stored"), [("gpt-oss-20b", "MXFP4"), ("deepseek-v3", "FP8"), ("qwen3-14b", "")])
def test_a_base_whose_own_checkpoint_is_quantized_says_so(name: str, stored: str) -> None:
    found = find_model(name)
    assert found.stored == stored
    assert any(f"stores {stored} weights" in note for note in found.notes) == bool(stored)


@pytest.mark.parametrize(("name", "expected"), [("Qwen/Qwen-7B", True), ("chatglm3-6b", True), ("falcon-7b", False)])
def test_families_that_bring_their_code_are_marked(name: str, expected: bool) -> None:
    assert find_model(name).needs_remote_code is expected


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("Qwen3-14", "Qwen/Qwen3-14B"),
        ("Qwen/Qwen3-14BB", "Qwen/Qwen3-14B"),
        ("mixtral-8x7", "mistralai/Mixtral-8x7B-v0.1"),
    ],
)
def test_an_unknown_name_offers_the_nearest_three(typo: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"no model is called '{typo}'") as error:
        find_model(typo)
    offered = error.value.hint.partition("; ")[0].removeprefix("nearest: ").split(", ")
    assert len(set(offered)) == 3
    assert meant in offered
    assert all(find_model(name).id == name for name in offered)


@given(st.text(max_size=30).filter(lambda text: text.strip() and not text.startswith((".", "/", "~"))))
def test_whatever_is_typed_gets_a_model_or_one_line(text: str) -> None:
    answer = answer_to(text)
    assert answer
    assert "\n" not in answer


def answer_to(name: str) -> str:
    """The id of the model that is found, or the line that is shown instead."""
    try:
        return find_model(name).id
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(UsageError, match="no model is named"):
        find_model(name)


def test_a_filter_word_finds_what_a_name_would() -> None:
    assert find_model("qwen3-14b").id in {model.id for model in match_models("qwen3-14b")}


@pytest.mark.parametrize(
    "name", ["google/gemma-4-E2B:text_config", "gemma-4-e2b:text_config", "unsloth/gemma-4-E2B:text_config "]
)
def test_a_suffix_asks_for_the_text_model_of_a_multi_modal_one(name: str) -> None:
    whole, found = find_model("gemma-4-E2B"), find_model(name)
    assert (found.id, found.config) == ("google/gemma-4-E2B:text_config", whole.config["text_config"])
    assert found.params_counted is None
    assert found.notes[-1] == (
        "planned is the text model of google/gemma-4-E2B alone, though AutoModelForCausalLM loads its towers too"
    )


@pytest.mark.parametrize("suffix", ["", ":text_config"])
def test_what_transformers_loads_as_its_text_model_is_planned_so_and_says_so(suffix: str) -> None:
    found = find_model(f"Llama-4-Scout-17B-16E-Instruct{suffix}")
    assert (found.id, found.config["model_type"]) == ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4_text")
    assert found.notes[-1].endswith("alone, as AutoModelForCausalLM loads it")


def test_a_folder_has_a_text_model_too(tmp_path) -> None:
    config = {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text", "hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_model(f"{tmp_path}:text_config").config == config["text_config"]


def test_a_model_without_a_text_model_says_so() -> None:
    with pytest.raises(UsageError, match=r"Qwen/Qwen3-14B has no text_config in its config\.json") as refused:
        find_model("Qwen3-14B:text_config")
    assert refused.value.hint == "leave out :text_config"


def test_a_text_model_without_a_family_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": {}}))
    with pytest.raises(UsageError, match="names no model_type"):
        find_model(f"{tmp_path}:text_config")
