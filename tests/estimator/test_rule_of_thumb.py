"""The literature's hand calculation, to its printed digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.estimator.rule_of_thumb import rule_of_thumb
from qmem.ledger import Interval, Kind

GB = 1000**3
QWEN3_14B = 14_768_307_200
RANK_8 = 32_112_640


def gb(n_bytes):
    return round(n_bytes.low / GB, 2), round(n_bytes.high / GB, 2)


def weights_gb(**choices):
    return rule_of_thumb(14_000_000_000, **choices).line(Kind.WEIGHTS).n_bytes.low / GB


def test_fourteen_billion_parameters_give_the_published_figures():
    rule = rule_of_thumb(14_000_000_000)
    assert gb(rule.line(Kind.WEIGHTS).n_bytes) == (7.09, 7.09)
    assert gb(rule.line(Kind.ACTIVATIONS).n_bytes) == (5.00, 7.00)
    assert gb(rule.line(Kind.BUFFERS).n_bytes) == (1.50, 2.00)
    assert gb(rule.total) == (13.59, 16.09)


def test_the_catalogues_count_of_qwen3_14b_gives_a_little_more():
    rule = rule_of_thumb(QWEN3_14B, RANK_8, hidden=5120, layers=40)
    assert gb(rule.line(Kind.WEIGHTS).n_bytes) == (7.48, 7.48)
    assert gb(rule.total) == (13.98, 16.48)


def test_weights_are_counted_at_the_bits_of_their_format():
    assert weights_gb() == pytest.approx(14 * 4.05 / 8)
    assert weights_gb(double_quant=False) == pytest.approx(14 * 4.5 / 8)
    assert weights_gb(quant="fp4") == weights_gb()
    assert weights_gb(quant="int8") == 14
    assert weights_gb(quant="none") == 28
    assert weights_gb(quant="none", dtype="fp32") == 56


def test_without_double_quantization_it_says_that_some_texts_print_another_figure():
    assert "4.25" in rule_of_thumb(14_000_000_000, double_quant=False).line(Kind.WEIGHTS).because


def test_adapter_lines_are_shown_and_left_out_of_the_total():
    rule = rule_of_thumb(QWEN3_14B, RANK_8, paged=False)
    by_kind = {line.kind: line.n_bytes.low for line in rule.lines if not line.counted}
    assert by_kind == {
        Kind.ADAPTER: 2 * RANK_8,
        Kind.GRADIENT: 2 * RANK_8,
        Kind.OPTIMIZER_STATE: 8 * RANK_8,
    }
    assert rule.total == rule_of_thumb(QWEN3_14B).total
    assert any("left out of the total" in sentence for sentence in rule.assumptions)


def test_a_paged_optimizer_is_nothing_on_the_gpu():
    rule = rule_of_thumb(QWEN3_14B, RANK_8, paged=True)
    assert rule.line(Kind.OPTIMIZER_STATE).n_bytes == Interval(0, 0)


def test_without_a_count_of_trained_parameters_there_are_no_adapter_lines():
    kinds = [line.kind for line in rule_of_thumb(14_000_000_000).lines]
    assert kinds == [Kind.WEIGHTS, Kind.ACTIVATIONS, Kind.BUFFERS]


def test_what_is_taken_from_the_reference_job_is_said_and_what_is_given_is_not():
    assert "hidden 5120 and 40 layers" in " ".join(rule_of_thumb(14_000_000_000).assumptions)
    assert "40 layers" not in " ".join(rule_of_thumb(14_000_000_000, layers=40).assumptions)
    assert "reference" not in " ".join(rule_of_thumb(14_000_000_000, hidden=4096, layers=32).assumptions)


def test_full_fine_tuning_is_warned_that_its_gradients_are_missing():
    full = rule_of_thumb(7 * GB, 7 * GB, quant="none")
    assert any("full fine-tuning" in sentence for sentence in full.assumptions)


@given(batch=st.integers(1, 64), seq=st.integers(1, 2**17), hidden=st.integers(1, 2**15), layers=st.integers(1, 200))
def test_activations_scale_with_batch_sequence_hidden_and_layers(batch, seq, hidden, layers):
    shape = {"batch": batch, "seq": seq, "hidden": hidden, "layers": layers}
    once = rule_of_thumb(10**9, **shape).line(Kind.ACTIVATIONS).n_bytes
    for name, size in shape.items():
        twice = rule_of_thumb(10**9, **{**shape, name: 2 * size}).line(Kind.ACTIVATIONS).n_bytes
        assert twice.low - 2 * once.low in (0, 1)
        assert twice.high - 2 * once.high in (0, 1)
