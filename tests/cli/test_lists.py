"""``qmem models`` and ``qmem gpus``: what the catalogue holds, as a table and as JSON."""

import json

import pytest

from qmem.architecture import FAMILIES as DESCRIBED
from qmem.catalogue import all_gpus, all_models
from qmem.catalogue.text_models import LOADED_AS_TEXT
from qmem.estimator.families import FAMILIES as WALKED


def test_every_model_is_listed_with_its_family_and_parameters(qmem) -> None:
    lines = qmem("models").out.splitlines()
    for model in all_models():
        line = next(line for line in lines if line.split()[:1] == [model.id])
        assert line.split()[1:4] == [model.model_type, f"{model.params_counted / 1e9:.2f}", "B"]


def test_unsure_fields_stand_below_their_model(qmem) -> None:
    unsure = next(model for model in all_models() if len(model.unsure_fields) == 1)
    head, row, remark = qmem("models", unsure.id).out.splitlines()[:3]
    assert head.split() == ["model", "family", "params", "modelled"]
    assert row.startswith(unsure.id)
    assert remark == f"    unsure: {unsure.unsure_fields[0]}"


def test_a_filter_is_words_in_any_case(qmem) -> None:
    ids = [model["id"] for model in json.loads(qmem("models", "QWEN3", "14b", "--json").out)["models"]]
    assert ids == ["Qwen/Qwen3-14B"]
    assert [gpu["id"] for gpu in json.loads(qmem("gpus", "RTX", "4090", "--json").out)["gpus"]] == ["rtx-4090"]


def test_the_list_says_which_models_are_walked(qmem) -> None:
    listed = {model["family"]: model["modelled"] for model in json.loads(qmem("models", "--json").out)["models"]}
    loaded_as_text = {family for family, text in LOADED_AS_TEXT.items() if text in WALKED}
    assert {family for family, how in listed.items() if how == "step"} == (set(WALKED) | loaded_as_text) & set(listed)
    assert {family for family, how in listed.items() if how == "text"} == {"gemma3", "gemma4"}
    assert {family for family, how in listed.items() if how == "tensors"} == (set(DESCRIBED) - set(WALKED)) & set(
        listed
    )


def test_json_has_whole_bytes_sources_and_a_schema_version(qmem) -> None:
    models, gpus = (json.loads(qmem(verb, "--json").out) for verb in ("models", "gpus"))
    assert models["schema_version"] == gpus["schema_version"] == 1
    assert [model["id"] for model in models["models"]] == [model.id for model in all_models()]
    assert all(isinstance(model["parameters"], int) and model["source"] for model in models["models"])
    assert all(isinstance(gpu["total_bytes"], int) and gpu["source"] for gpu in gpus["gpus"])


def test_every_card_is_listed_with_the_memory_that_cuda_reports(qmem) -> None:
    lines = qmem("gpus").out.splitlines()
    for gpu in all_gpus():
        line = next(line for line in lines if line.split()[:1] == [gpu.id])
        assert f" {gpu.total_bytes / 2**30:.2f} " in line
    assert sum("unsure: total_bytes" in line for line in lines) == sum(bool(gpu.unsure_fields) for gpu in all_gpus())


@pytest.mark.parametrize("verb", ["models", "gpus"])
def test_no_line_is_wider_than_80_columns(qmem, verb: str) -> None:
    assert max(map(len, qmem(verb).out.splitlines())) <= 80


@pytest.mark.parametrize("verb", ["models", "gpus"])
def test_a_filter_that_matches_nothing_says_so_on_stderr(qmem, verb: str) -> None:
    answer = qmem(verb, "no-such-thing")
    assert (answer.code, answer.out) == (0, "")
    assert f"matches 'no-such-thing'; qmem {verb} lists all of them" in answer.err


@pytest.mark.parametrize("verb", ["models", "gpus"])
def test_lists_carry_no_colours_and_no_signs_beyond_ascii(qmem_process, verb: str) -> None:
    answer = qmem_process(verb, PYTHONIOENCODING="ascii", FORCE_COLOR="1")
    assert (answer.code, answer.err) == (0, "")
    assert "\x1b" not in answer.out
