"""The report on torch's versions says what was recorded under each."""

from pathlib import Path

import msgspec
import pytest

from qmem.integrations.environments import environments
from qmem.integrations.torch_versions.report import report
from qmem.integrations.torch_versions.trying import TAINTS, Record

REPORTS = Path(__file__).parents[2] / "reports"
RECORD = msgspec.json.decode((REPORTS / "torch-versions.json").read_bytes(), type=Record)

MUST_TAINT = {
    "nonzero_of_an_activation",
    "unique_of_an_activation",
    "indexing_by_a_computed_mask",
    "item_of_an_activation_in_an_if",
}


def test_the_report_is_what_would_be_written_from_its_record():
    assert report(RECORD) == (REPORTS / "torch-versions.md").read_text(encoding="utf-8")


def test_every_environment_was_tried():
    assert [tried.environment for tried in RECORD.tried] == list(environments())
    assert [tried.versions["torch"] for tried in RECORD.tried] == ["2.4.1", "2.8.0", "2.11.0", "2.14.1"]


@pytest.mark.parametrize("tried", RECORD.tried, ids=lambda tried: tried.environment)
def test_the_guard_and_the_trainings_held_under_it(tried):
    assert [case for case in tried.cases if not case.passed] == []
    assert {case.case for case in tried.cases if case.test == TAINTS} >= MUST_TAINT
    assert {(training.ended, training.state) for training in tried.trainings} == {("complete", "clean")}
