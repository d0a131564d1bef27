"""``--rule-of-thumb`` alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.estimator.rule_of_thumb import rule_of_thumb
from qmem.report.rule import render_rule_of_thumb


def hundredths(page, name):
    """Both ends of the amount in the line that begins with ``name``."""
    found = re.search(rf"^{name}\s+(\d+\.\d\d)(?: to (\d+\.\d\d))?\s", page, re.MULTILINE)
    return tuple(round(float(end) * 100) for end in (found[1], found[2] or found[1]))


@pytest.mark.parametrize("width", [80, 120, 200])
def test_fourteen_billion_parameters_print_the_figures_of_the_literature(printed, width):
    page = printed(render_rule_of_thumb, rule_of_thumb(14_000_000_000), width=width)
    assert re.search(r"^weights\s+7\.09 ", page, re.MULTILINE)
    assert re.search(r"^total\s+13\.59 to 16\.09 ", page, re.MULTILINE)
    assert "GB" in page
    assert "hidden 5120 and 40 layers" in " ".join(page.split())


def test_lora_lines_stand_in_parentheses_and_are_said_to_be_left_out(printed):
    page = printed(render_rule_of_thumb, rule_of_thumb(14_768_307_200, 32_112_640, hidden=5120, layers=40))
    assert re.search(r"^LoRA weights\s+\(0\.06\)", page, re.MULTILINE)
    assert re.search(r"^total\s+13\.98 to 16\.48 ", page, re.MULTILINE)
    assert "left out of the total" in " ".join(page.split())


@given(n_parameters=st.integers(10**6, 10**12), seq=st.integers(1, 10**5), layers=st.integers(1, 200))
def test_printed_lines_add_up_to_the_printed_total(printed, n_parameters, seq, layers):
    page = printed(render_rule_of_thumb, rule_of_thumb(n_parameters, seq=seq, layers=layers))
    parts = [hundredths(page, name) for name in ("weights", "activations", "buffers and overhead")]
    total = hundredths(page, "total")
    assert total == (sum(low for low, _ in parts), sum(high for _, high in parts))
