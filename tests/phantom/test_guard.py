"""The readback guard: reads of unknown values are flagged, and known ones are answered truly."""

import inspect
from pathlib import Path

import pytest
from phantom_process import SCRIPTS, run_script

pytestmark = pytest.mark.libraries

TOKENS = 512
SOURCE = Path(SCRIPTS, "guard_cases.py").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def outcomes():
    return run_script("guard_cases.py")


@pytest.mark.parametrize(
    ("case", "asking"),
    [
        ("nonzero_of_an_activation", ".nonzero()"),
        ("unique_of_an_activation", ".unique()"),
        ("indexing_by_a_computed_mask", "hidden[hidden[..., 0] > 0]"),
        ("item_of_an_activation_in_an_if", "if hidden.mean().item() > 0"),
        ("tolist_of_counts_on_the_device", ".tolist()"),
        ("random_ids_made_on_the_device", "ids[ids > 50]"),
        ("known_values_after_an_address_was_handed_out", "bool(mask.all())"),
        ("known_values_overwritten_by_unknown_ones", "bool(mask.all())"),
        ("a_view_of_known_values_overwritten_by_unknown_ones", "bool(mask[:32].all())"),
        ("item_of_an_activation_while_a_checkpoint_recomputes", "y.sum().item()"),
    ],
)
def test_a_read_of_values_that_were_never_computed_taints_and_names_its_line(outcomes, case, asking):
    outcome = outcomes[case]
    assert outcome["state"] == "tainted"
    tainting = [read for read in outcome["reads"] if read["state"] == "tainted"]
    lines = [SOURCE[int(read["line"].partition("guard_cases.py:")[2].split(" in ")[0]) - 1] for read in tainting]
    assert any(asking in line for line in lines)
    assert all(read["kernel"] and read["why"] == "its values were never computed" for read in tainting)


@pytest.mark.parametrize(
    ("case", "result"),
    [
        ("masks_of_ones_of_any_batch", [True, True, True]),
        ("padded_mask", [False, True, [TOKENS, TOKENS - 100]]),
        ("positions_of_one_sequence_and_of_two", [True, True, False]),
        ("labelled_positions", [[n, [2, TOKENS, 16], n] for n in (2 * TOKENS, TOKENS, 0)]),
        ("written_in_place", [10, 1, 2, 3, *4 * [2], *8 * [1]]),
        ("a_large_mask", [8 * 65536, 8 * 65536]),
        ("true_masks_while_a_checkpoint_recomputes", None),
        ("a_mask_function_mapped_over_positions", [TOKENS, TOKENS]),
        ("a_declared_loss", [2.5, False, False]),
        ("a_declared_block", None),
        ("nothing_but_products", None),
    ],
)
def test_values_that_follow_from_the_host_are_true_and_leave_the_result_clean(outcomes, case, result):
    assert outcomes[case]["result"] == result
    assert outcomes[case]["state"] == "clean"


def test_every_way_to_select_by_a_known_mask_gives_the_true_number(outcomes):
    half = TOKENS // 2
    assert outcomes["selections"]["state"] == "clean"
    assert outcomes["selections"]["result"] == {
        "nonzero": TOKENS,
        "where": half,
        "masked_select": [half, half + 1],
        "unique": TOKENS + 1,
        "bincount": [TOKENS, TOKENS],
        "repeat_interleave": TOKENS,
        "strided": TOKENS - 1,
        "equal": True,
        "contains": True,
    }


def test_what_rests_on_a_named_assumption_is_assumed_not_clean(outcomes):
    outcome = outcomes["a_named_assumption"]
    assert (outcome["state"], outcome["result"]) == ("assumed", TOKENS // 8)


def test_unknown_values_that_are_assumed_to_be_nothing_are_read_as_nothing(outcomes):
    outcome = outcomes["zeros_by_assumption"]
    assert (outcome["state"], outcome["result"]) == ("assumed", [False, 0])
    assert {read["why"] for read in outcome["reads"]} == {"no outliers"}


def test_declared_reads_are_listed_with_what_was_declared(outcomes):
    assert {read["why"] for read in outcomes["a_declared_loss"]["reads"]} == {"loss"}
    assert {read["why"] for read in outcomes["a_declared_block"]["reads"]} == {"declared: gradient norm"}


def test_a_step_without_reads_has_none(outcomes):
    assert outcomes["nothing_but_products"]["reads"] == []


def test_every_case_is_asked_about(outcomes):
    asked = inspect.getsource(inspect.getmodule(test_every_case_is_asked_about))
    assert [case for case in outcomes if f'"{case}"' not in asked] == []
