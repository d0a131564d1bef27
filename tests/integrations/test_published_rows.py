"""The report on published measurements says what was measured, and what was published."""

from pathlib import Path
from statistics import median

import pytest
from msgspec import structs
from unsplit import most_unsplit

from qmem import estimate
from qmem.catalogue import find_gpu
from qmem.catalogue.stacks import resolve_stack
from qmem.integrations.environments import environments
from qmem.integrations.published.replaying import digest, write_job
from qmem.integrations.published.report import errors, report, worse
from qmem.integrations.published.rows import FIGURES, read_replay, read_rows
from qmem.job import make_job
from qmem.job.file import read_job_file

REPORTS = Path(__file__).parents[2] / "reports"
MEASURED = read_replay(FIGURES)
WRITTEN = (REPORTS / "phantom-vs-published.md").read_text(encoding="utf-8")
ROWS = read_rows()
MEDIAN, WORST = 0.003, 0.02
"""What was asked of the errors before any was known, as shares of the published peak."""


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table():
    lines = [line for line in WRITTEN.splitlines() if line.startswith("|")]
    return [dict(zip(cells_of(lines[0]), cells_of(line), strict=True)) for line in lines[2:]] if lines else []


def number(text):
    return int(text.replace(",", ""))


def test_the_report_is_what_would_be_written_from_its_figures():
    assert report(ROWS, MEASURED) == WRITTEN


def test_every_row_is_clean_and_near():
    found = errors(ROWS, MEASURED)
    assert median(abs(error.peak) for error in found) <= MEDIAN
    assert max(abs(error.peak) for error in found) <= WORST
    assert {(error.measured.state, error.measured.ended) for error in found} == {("clean", "complete")}


def test_what_was_measured_is_what_the_rows_ask():
    assert {one.id: one.asked for one in MEASURED.measured} == {row.id: digest(ROWS, row) for row in ROWS.rows}


def test_a_run_that_is_further_off_than_the_one_before_names_its_rows():
    first = MEASURED.measured[0]
    further = structs.replace(first, peak_allocated_bytes=first.peak_allocated_bytes - 512)
    after = structs.replace(MEASURED, measured=(further, *MEASURED.measured[1:]))
    assert worse(ROWS, MEASURED, after) == [first.id]
    assert worse(ROWS, MEASURED, MEASURED) == []


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
def test_the_tensors_of_a_row_leave_room_for_nothing_but_unsplit_ends_of_blocks(row, tmp_path):
    job = make_job(read_job_file(str(write_job(ROWS, row, tmp_path))))
    estimated = estimate(job, find_gpu(ROWS.gpu), replay="none")
    rounded = estimated.peak.allocated_bytes - row.kept
    assert 0 <= row.published.peak_allocated_bytes - rounded <= most_unsplit(estimated)


@pytest.mark.parametrize("row", ROWS.rows, ids=lambda row: row.id)
def test_a_row_was_measured_with_the_versions_that_its_stack_is_known_with(row):
    known = resolve_stack(make_job(row.job)).versions
    measured = next(one for one in MEASURED.measured if one.id == row.id)
    pins = dict(pin.split("==") for pin in environments()[ROWS.environment].libraries)
    assert measured.versions == known
    assert known.items() <= pins.items()
