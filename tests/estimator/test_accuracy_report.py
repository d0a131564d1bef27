"""The published errors are those of this version."""

from accuracy_report import REPORT, report


def test_the_accuracy_report_is_up_to_date():
    assert REPORT.read_text() == report(), "run tests/estimator/accuracy_report.py"
