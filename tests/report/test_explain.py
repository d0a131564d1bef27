"""``--explain KIND``: every word a user would try, and the arithmetic behind a row."""

import re

import msgspec
import pytest

from qmem.errors import UsageError
from qmem.ledger import Kind
from qmem.report.explain import parse_kind, render_explanation


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_is_known_by_its_label_and_path_in_any_case(kind):
    assert parse_kind(kind.label.upper()) is kind
    assert parse_kind(kind.value) is kind


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("gradient", Kind.GRADIENT),
        ("Gradients", Kind.GRADIENT),
        ("weights", Kind.WEIGHTS),
        ("weight", Kind.WEIGHTS),
        ("quantization state", Kind.QUANT_STATE),
        ("absmax", Kind.QUANT_STATE),
        ("logits", Kind.LOGITS),
        ("loss", Kind.LOGITS),
        ("logits_and_loss", Kind.LOGITS),
        ("4-bit data", Kind.BASE_WEIGHT),
        ("fp32 weights", Kind.WEIGHT_32BIT),
        ("dequantized weights", Kind.DEQUANTIZED),
        ("optimizer temporaries", Kind.OPTIMIZER_TEMPORARY),
        ("lora", Kind.LORA_AND_ADAMW),
        ("cuda context", Kind.CONTEXT),
    ],
)
def test_common_words_name_kinds(word, kind):
    assert parse_kind(word) is kind


def test_an_unknown_kind_is_refused_with_the_list_of_kinds(printed, ledger):
    with pytest.raises(UsageError, match=r"no kind of memory called 'kv cache'.*quantization state.*workspace.*paged"):
        printed(render_explanation, ledger, "kv cache")


def test_a_kind_that_the_job_does_not_have_is_refused_with_the_rows_it_has(printed, ledger):
    with pytest.raises(UsageError, match=r"this job has no dequantized weight.*it has 4-bit data"):
        printed(render_explanation, ledger, "dequantized")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_layers_fold_into_a_series_whose_numbers_multiply_to_the_row(printed, ledger, width):
    page = printed(render_explanation, ledger, "quantization state", width=width)
    words = " ".join(page.split())
    assert "model.layers.{0..39}.mlp.up_proj.weight 56,568,800" in words
    assert "= 40 x 1,414,220 B: absmax 1,392,640 B, nested absmax 21,760 B" in words
    assert 40 * 1_414_220 == 56_568_800
    assert "from load to the end" in words
    assert "quantization state: 0.053 GiB 56,568,800" in words


def test_a_transient_holding_says_the_phase_it_lives_in(printed, ledger):
    assert "within loss of step 2" in printed(render_explanation, ledger, "checkpoints")


def test_many_small_holdings_become_one_line_and_the_row_still_adds_up(printed, ledger):
    like = next(item for item in ledger.items if item.kind is Kind.INTERMEDIATE)
    many = tuple(msgspec.structs.replace(like, owner=f"role {number}", n_bytes=number) for number in range(1, 61))
    page = printed(render_explanation, msgspec.structs.replace(ledger, items=many), "intermediates")
    n_bytes = [int(number.replace(",", "")) for number in re.findall(r"\s\s([\d,]+)\s*$", page, re.MULTILINE)]
    *parts, total = n_bytes
    assert "smaller holdings" in page
    assert len(parts) < 60
    assert sum(parts) == total == sum(range(1, 61))


def test_a_heading_explains_each_of_its_rows_and_their_bytes_add_up(printed, ledger):
    page = printed(render_explanation, ledger, "weights")
    totals = [int(number.replace(",", "")) for number in re.findall(r"GiB\s+([\d,]+)\s*$", page, re.MULTILINE)]
    alive = ledger.by_kind(ledger.peak.moment)
    assert totals == [alive[kind] for kind in (Kind.BASE_WEIGHT, Kind.QUANT_STATE, Kind.WEIGHT_32BIT)]


def test_holdings_of_some_layers_only_are_written_as_ranges(printed, ledger):
    kept = [item for item in ledger.items if ".layers.1." not in item.owner and ".layers.7." not in item.owner]
    page = printed(render_explanation, msgspec.structs.replace(ledger, items=tuple(kept)), "4-bit data", width=120)
    assert "model.layers.{0,2..6,8..39}.mlp.up_proj.weight" in page


def test_paged_state_is_explained_from_managed_memory(printed, ledger):
    page = printed(render_explanation, ledger, "paged")
    assert "lora_B" in page
    assert f"{ledger.paged_bytes:,}" in page
    assert "lora_A" not in page


def test_paged_state_of_a_job_without_any_is_refused(printed, ledger):
    with pytest.raises(UsageError, match="this job has no paged optimizer state"):
        printed(render_explanation, msgspec.structs.replace(ledger, paged_bytes=0), "paged")


def test_cache_is_explained_as_a_difference_and_dead_gradients_as_dead(printed, ledger):
    assert "1.855 GiB: peak reserved less peak allocated" in printed(render_explanation, ledger, "cache")
    assert "0.000 GiB: nothing of it is alive at the peak" in printed(render_explanation, ledger, "gradients")


def test_an_ascii_output_explains_without_foreign_signs(printed, ledger):
    assert "= 2 x 1,244,659,712 B: 1 x 2,048 x 151,936 x 4 B" in printed(
        render_explanation, ledger, "logits", encoding="ascii"
    )
