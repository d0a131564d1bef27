"""The published errors are those of this version."""

from recorded_report import REPORT, report


def test_the_report_is_up_to_date():
    assert REPORT.read_text() == report(), "run tests/estimator/recorded_report.py"
