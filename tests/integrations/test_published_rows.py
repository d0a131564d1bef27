"""The report on published measurements says what was measured, and what was published."""

from pathlib import Path

import msgspec
import pytest

from qmem import estimate
from qmem.catalogue import find_gpu
from qmem.catalogue.stacks import resolve_stack
from qmem.integrations.environments import environments
from qmem.integrations.published.replaying import write_job
from qmem.integrations.published.report import errors, report
from qmem.integrations.published.rows import Replay, read_rows
from qmem.job import make_job
from qmem.job.file import read_job_file

REPORTS = Path(__file__).parents[2] / "reports"
MEASURED = msgspec.json.decode((REPORTS / "phantom-vs-published.json").read_bytes(), type=Replay)
WRITTEN = (REPORTS / "phantom-vs-published.md").read_text(encoding="utf-8")
ROWS = read_rows()


def bound(row):
    """A share of the published peak; with another kernel than the published run's it is wider."""
    return 0.006 if row.miss else 0.001


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table():
    lines = [line for line in WRITTEN.splitlines() if line.startswith("|")]
    return [dict(zip(cells_of(lines[0]), cells_of(line), strict=True)) for line in lines[2:]] if lines else []


def number(text):
    return int(text.replace(",", ""))


def test_the_report_is_what_would_be_written_from_its_figures():
    assert report(ROWS, MEASURED) == WRITTEN


def test_every_row_is_clean_and_within_a_tenth_of_a_percent_or_says_why_not():
    for error in errors(ROWS, MEASURED):
        assert abs(error.peak) <= bound(error.row)
        assert (error.measured.state, error.measured.ended) == ("clean", "complete")


def test_the_errors_that_are_printed_are_those_of_the_figures_beside_them():
    published = {row.id: row.published.peak_allocated_bytes for row in ROWS.rows}
    printed = table()
    assert len(printed) == len(published)
    for line in printed:
        name = line["row"].partition("]")[0].lstrip("[")
        assert number(line["published peak"]) == published[name]
        assert line["off by"] == f"{number(line['phantom peak']) / published[name] - 1:+.4%}"


def test_the_worst_row_comes_first():
    shares = [abs(error.peak) for error in errors(ROWS, MEASURED)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("row", ROWS.rows, ids=lambda row: row.id)
def test_the_estimate_of_a_row_is_as_near(row, tmp_path):
    job = make_job(read_job_file(str(write_job(ROWS, row, tmp_path))))
    estimated = estimate(job, find_gpu(ROWS.gpu)).peak.allocated_bytes
    assert estimated == pytest.approx(row.published.peak_allocated_bytes, rel=bound(row))


@pytest.mark.parametrize("row", ROWS.rows, ids=lambda row: row.id)
def test_a_row_was_measured_with_the_versions_that_its_stack_is_known_with(row):
    known = resolve_stack(make_job(row.job)).versions
    measured = next(one for one in MEASURED.measured if one.id == row.id)
    pins = dict(pin.split("==") for pin in environments()[ROWS.environment].libraries)
    assert measured.versions == known
    assert known.items() <= pins.items()
