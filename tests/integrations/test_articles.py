"""What articles claim, beside the two instruments."""

from pathlib import Path

import pytest

from qmem.integrations import articles
from qmem.integrations.accuracy.grid import read_measured, store_measured
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
    assert isinstance(phantom, int)
    assert abs(estimate - phantom) <= 0.0005 * phantom


def test_what_an_article_says_is_printed_as_it_says_it() -> None:
    claims = {claim.name: claim for claim in articles.read_claims()}
    page = (ROOT / articles.REPORT).read_text()
    assert "| 13.58 to 16.08 |" in page
    assert "| over 780.00 |" in page
    assert "| under 48.00 |" in page
    assert claims["qwen3-14b-adamw"].of == "optimizer state"


def test_a_claim_without_an_address_says_so() -> None:
    lines = (ROOT / articles.REPORT).read_text().partition("## Sources")[2].splitlines()
    unknown = [line for line in lines if line.startswith("*") and "](http" not in line]
    assert unknown
    assert all(line.endswith("(source not found)") for line in unknown)


def test_a_measurement_of_another_job_answers_no_claim(tmp_path: Path) -> None:
    claim = articles.read_claims()[0]
    other = read_measured(MEASURED, articles.read_claims()[1].name)
    assert isinstance(other, Ledger)
    store_measured(tmp_path, claim.name, other)
    assert articles.answers(claim, tmp_path).phantom == "what is stored is another job"
    assert articles.answers(claim, tmp_path / "empty").phantom == "not run yet"
