"""What articles claim, beside the two instruments."""

from pathlib import Path

import pytest

from qmem.integrations import articles
from qmem.integrations.accuracy.grid import read_measured
from qmem.ledger import Ledger

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / articles.MEASURED


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_is_current() -> None:
    assert (ROOT / articles.REPORT).read_text() == articles.report()


@pytest.mark.parametrize("claim", articles.read_claims(), ids=lambda claim: claim.name)
def test_both_instruments_agree_on_every_claim(claim: articles.Claim) -> None:
    measured = read_measured(MEASURED, claim.name)
    assert isinstance(measured, Ledger)
    assert measured.job == claim.job
    assert measured.state == "clean"
    estimate, phantom = articles.answers(claim)
    assert phantom is not None
    assert abs(estimate - phantom) <= 0.0005 * phantom


def test_what_an_article_says_is_printed_as_it_says_it() -> None:
    claims = {claim.name: claim for claim in articles.read_claims()}
    page = articles.report()
    assert "| 13.58 to 16.08 |" in page
    assert "| over 780.00 |" in page
    assert "| under 48.00 |" in page
    assert claims["qwen3-14b-adamw"].of == "optimizer state"
