"""The committed grid: its jobs, what they measured, and how far the estimate of today is off."""

import json
import sys
from pathlib import Path

import msgspec
import pytest

from qmem.catalogue import find_model
from qmem.catalogue.checked import Checked, checked
from qmem.errors import UsageError
from qmem.integrations.accuracy import writing
from qmem.integrations.accuracy.__main__ import scored
from qmem.integrations.accuracy.grid import Refused, read_grid, read_measured, store_measured
from qmem.integrations.accuracy.published import published_errors, score_published
from qmem.integrations.accuracy.scoring import middle
from qmem.ledger import Ledger

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "reports" / "accuracy" / "measured"
EXPERTS = ("moe", "mixtral", "gpt_oss")

# What the estimate must hold on the grid: medians and worst errors as shares of the measured peak.
CLEAN = {
    "allocated": (0.0005, 0.01),
    "reserved": (0.005, 0.04),
    "quick_allocated": (0.005, 0.02),
    "grain": (0.005, 0.02),
}
PUBLISHED = (0.003, 0.02)
PUBLISHED_ROWS = {f"fms-{number:03}" for number in (1, 5, 17, 21, 33, 57, 75, 79, 91)}
ASSUMED = {"allocated": (0.01, 0.05)}
MOST_TAINTED = 0.05
SAME_PHASE = 0.98


@pytest.fixture(scope="module")
def entries():
    return read_grid()


@pytest.fixture(scope="module")
def table(entries):
    return scored(entries, MEASURED)


@pytest.fixture(scope="module")
def published():
    return score_published()


def test_the_grid_covers_what_people_run(entries):
    jobs = [entry.job for entry in entries]
    families = [find_model(job.model).config["model_type"] for job in jobs]
    assert len(jobs) >= 90
    assert len({job.model for job in jobs}) >= 12
    assert sum(any(word in family for word in EXPERTS) for family in families) >= 12
    assert {job.method for job in jobs} == {"qlora", "lora", "full"}
    assert {job.stack for job in jobs} == {"hf", "trl", "plain"}
    assert {job.attention for job in jobs} == {"sdpa", "eager"}
    assert {job.checkpointing for job in jobs} == {True, False}
    assert {job.expandable_segments for job in jobs} == {True, False}
    assert {job.double_quant for job in jobs} == {True, False}
    assert {job.amp for job in jobs} >= {True, False}
    assert len({job.optimizer for job in jobs}) >= 6
    for field, least, most in (("rank", 4, 128), ("batch", 1, 16), ("seq", 256, 16384)):
        values = [getattr(job, field) for job in jobs]
        assert (min(values), max(values)) == (least, most)


def test_every_job_of_the_grid_is_measured(entries):
    measured = {entry.name: read_measured(MEASURED, entry.name) for entry in entries}
    assert [name for name, found in measured.items() if not isinstance(found, Ledger)] == []
    stored = {path.name.removesuffix(".json.xz") for path in MEASURED.glob("*.json.xz")}
    assert stored == set(measured)
    assert {found.instrument for found in measured.values()} == {"phantom profile"}


def test_what_was_measured_is_the_job_of_the_grid(entries):
    for entry in entries:
        measured = read_measured(MEASURED, entry.name)
        assert isinstance(measured, Ledger)
        assert measured.job == entry.job


@pytest.mark.parametrize(("state", "bounds"), [("clean", CLEAN), ("assumed", ASSUMED)])
def test_the_estimate_is_as_near_as_it_says(table, state, bounds):
    rows = [row for row in table[0] if row.state == state]
    assert rows
    for field, (median, worst) in bounds.items():
        errors = {row.name: getattr(row, field) for row in rows}
        assert middle(errors.values()) <= median, field
        assert {name: error for name, error in errors.items() if abs(error) > worst} == {}, field


def test_resident_memory_is_exact(table):
    exact = (0, 0, 0, 0, 0)
    for row in table[0]:
        assert (row.requested, row.loaded, row.prepared, row.paged, row.residents) == exact, row.name


def test_a_phase_of_one_side_alone_holds_nothing_that_the_other_does_not_say(table):
    alone = [error for row in table[0] for error in row.phases if error.only]
    assert {(error.only, error.key[2]) for error in alone} == {
        ("phantom", "prepare"), ("phantom", "forward"), ("phantom", "loss"), ("phantom", "backward"),
    }  # fmt: skip
    assert [str(error) for error in alone if error.differs] == []


def test_the_peak_is_in_the_phase_where_it_is_measured(table):
    trusted = [row for row in table[0] if row.state != "tainted"]
    assert sum(row.same_phase for row in trusted) >= SAME_PHASE * len(trusted)


def test_few_jobs_are_tainted_and_all_are_listed(entries, table):
    rows, listed, _ = table
    assert sum(row.state == "tainted" for row in rows) <= MOST_TAINTED * len(entries)
    assert listed == []
    assert [row.name for row in rows] == [entry.name for entry in entries]


def test_the_report_is_current(table, published):
    assert (ROOT / "reports" / "accuracy.md").read_text() == writing.report(*table, published)


def test_published_peaks_of_a_real_card_are_met(published):
    median, worst = PUBLISHED
    assert {score.row.id for score in published} == PUBLISHED_ROWS
    for errors in ([score.error for score in published], [score.quick_error for score in published]):
        assert middle(errors) <= median
        assert max(map(abs, errors)) <= worst


def test_every_published_row_that_is_not_met_says_why(published):
    assert [score.row.id for score in published if bool(score.error) != bool(score.why)] == []


def test_no_published_row_is_further_off_than_before(published):
    committed = json.loads((ROOT / "reports" / "accuracy" / "published.json").read_text())
    assert committed.keys() == {score.row.id for score in published}
    assert writing.grown(committed, published_errors(published)) == {}


def test_no_error_has_grown(table):
    committed = json.loads((ROOT / "reports" / "accuracy" / "errors.json").read_text())
    assert committed.keys() == {row.name for row in table[0]}
    assert writing.grown(committed, writing.errors(table[0])) == {}


def test_what_is_gone_has_grown():
    before = {"one": {"allocated": 0.1, "reserved": -0.2}, "two": {"allocated": 0.0}}
    now = {"one": {"allocated": -0.2, "reserved": 0.1}}
    assert writing.grown(before, now) == {"one: allocated": "0.1 -> -0.2", "two: allocated": "0.0 -> gone"}


def test_the_doubt_of_the_estimate_is_that_of_the_grid(table):
    assert checked() == msgspec.convert(msgspec.to_builtins(writing.checked(table[0])), Checked)


def test_what_is_stored_is_read_back(tmp_path):
    store_measured(tmp_path, "one", Refused("because"))
    assert read_measured(tmp_path, "one") == Refused("because")
    assert read_measured(tmp_path, "two") is None
    assert [path.name for path in tmp_path.iterdir()] == ["one.json.xz"]


def test_a_damaged_measurement_is_named(tmp_path):
    (tmp_path / "one.json.xz").write_bytes(b"\xfd7zXZ cut")
    with pytest.raises(UsageError, match=r"one\.json\.xz is damaged"):
        read_measured(tmp_path, "one")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": {"gpu": "l4"}}', '{"a": {"job": {"model": "x", "rang": 8}, "gpu": "l4"}}']
)
def test_what_is_no_grid_is_refused(tmp_path, text):
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a grid"):
        read_grid(path)


def test_the_grid_is_written_one_job_a_line():
    text = (ROOT / "qmem" / "integrations" / "accuracy" / "grid.json").read_text()
    assert len(text.splitlines()) == len(json.loads(text)) + 2


def test_the_pictures_are_drawn(table, tmp_path):
    pytest.importorskip("matplotlib")
    from qmem.integrations.accuracy.plots import plot

    plot(table[0], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models.svg", "predicted.svg", "regimes.svg"]


def test_without_matplotlib_the_extra_is_named(table, tmp_path, monkeypatch):
    from qmem.errors import UnavailableError
    from qmem.integrations.accuracy.plots import plot

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnavailableError, match=r"qmem-planner\[plots\]"):
        plot(table[0], tmp_path)
