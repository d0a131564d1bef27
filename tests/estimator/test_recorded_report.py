"""The published errors are those of this version."""

from recorded_report import REPORT, known_errors, report, rows


def test_the_report_is_up_to_date():
    found = list(rows())
    assert REPORT.read_text() == report(found), "run tests/estimator/recorded_report.py"
    assert REPORT.with_suffix(".json").read_text() == known_errors(found)
