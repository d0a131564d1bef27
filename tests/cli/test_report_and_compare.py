"""``qmem report`` and ``qmem compare``: stored ledgers in, any form out, one line for a bad file."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qmem.ledger import from_json


@pytest.fixture
def stored(qmem, tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(qmem("estimate", "Qwen3-0.6B", "--json").out)
    return path


@pytest.fixture
def other(qmem, tmp_path: Path) -> Path:
    path = tmp_path / "other.json"
    path.write_text(qmem("estimate", "Qwen3-0.6B", "--rank", "16", "--json").out)
    return path


def test_report_shows_the_peak_and_the_phases(qmem, stored: Path) -> None:
    answer = qmem("report", str(stored))
    ledger = from_json(stored.read_bytes())
    assert (answer.code, answer.err) == (0, "")
    assert f"{ledger.peak.allocated_bytes / 2**30:.3f}" in answer.out
    assert "instrument: estimate" in answer.out
    assert "Step 1, GiB, estimate" in answer.out
    assert "Step 2, GiB, estimate" in answer.out


def test_json_of_a_report_is_the_ledger(qmem, stored: Path) -> None:
    assert qmem("report", str(stored), "--json").out == stored.read_text()
    assert qmem("report", str(stored), "--format", "json").out == stored.read_text()


def test_stdin_is_a_file_too(stored: Path) -> None:
    command = [sys.executable, "-m", "qmem", "compare", "-", str(stored), "--json"]
    done = subprocess.run(command, input=stored.read_bytes(), capture_output=True, check=True)
    assert json.loads(done.stdout)["equal"] is True


@pytest.mark.parametrize("form", ["table", "markdown", "json", "csv"])
def test_every_form_goes_to_stdout_or_to_a_file(qmem, stored: Path, other: Path, form: str) -> None:
    if form == "csv":
        pytest.importorskip("pandas")
    out = stored.with_name("out")
    for call in (["report", str(stored)], ["compare", str(stored), str(other)]):
        shown = qmem(*call, "--format", form)
        assert (shown.code, shown.err) == (0, "")
        assert qmem(*call, "--format", form, "-o", str(out)) == (0, "", "")
        assert out.read_text() == shown.out


def test_a_file_gets_no_colours(qmem, tmp_path: Path, stored: Path, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in qmem("report", str(stored)).out
    qmem("report", str(stored), "-o", str(tmp_path / "out"))
    assert "\x1b" not in (tmp_path / "out").read_text()


def test_compare_shows_what_differs_and_is_no_finding(qmem, stored: Path, other: Path) -> None:
    answer = qmem("compare", str(stored), str(other))
    assert (answer.code, answer.err) == (0, "")
    assert ["job.rank", "8", "16"] in [line.split() for line in answer.out.splitlines()]
    same = qmem("compare", str(stored), str(stored))
    assert same.code == 0
    assert same.out.startswith("A and B are equal in all ")


def test_lines_of_a_comparison_fit_80_columns(qmem, stored: Path, other: Path) -> None:
    assert max(len(line.rstrip()) for line in qmem("compare", str(stored), str(other)).out.splitlines()) <= 80


def test_csv_has_a_line_for_every_item_and_reading(qmem, stored: Path) -> None:
    pytest.importorskip("pandas")
    ledger = from_json(stored.read_bytes())
    rows = list(csv.DictReader(io.StringIO(qmem("report", str(stored), "--format", "csv").out)))
    assert len(rows) == len(ledger.items) + len(ledger.readings)


BAD_FILES = {
    "empty": (b"", "not a ledger"),
    "text": (b"hello", "not a ledger"),
    "not utf-8": (b'{"model": "\xff"}', "not a ledger"),
    "another object": (b'{"schema_version": 1, "gpus": []}', "not a ledger"),
    "a list": (b"[]", "not a ledger"),
    "deep": (b'{"stack": {"x": ' + b"[" * 100_000, "not a ledger"),
    "a later version": (b'{"schema_version": 2, "everything": "else"}', "has schema version 2, this qmem reads 1"),
    "a version that is none": (b'{"schema_version": "one"}', "not a ledger"),
}


@pytest.mark.parametrize(("content", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_gets_one_line_that_names_it(qmem, tmp_path: Path, stored: Path, content: bytes, says: str) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    for arguments in (("report", str(bad)), ("compare", str(stored), str(bad)), ("compare", str(bad), str(stored))):
        answer = qmem(*arguments)
        assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
        assert str(bad) in answer.err
        assert says in answer.err


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_a_file_that_is_cut_short_gets_one_line(qmem, tmp_path: Path, stored: Path, share: float) -> None:
    whole = stored.read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[: int(len(whole) * share)])
    answer = qmem("report", str(tmp_path / "cut.json"))
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "cut.json: not a ledger" in answer.err


def test_a_job_that_contradicts_itself_in_a_stored_ledger_gets_one_line(qmem, stored: Path) -> None:
    stored.write_text(stored.read_text().replace('"rank":8', '"rank":0'))
    answer = qmem("report", str(stored))
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "rank is 0" in answer.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "no-such-file.json"], "cannot read 'no-such-file.json': No such file or directory"),
        (["report", "."], "cannot read '.': Is a directory"),
        (["report", "a\0b"], "cannot read"),
        (["report"], "missing argument 'FILE'"),
        (["compare", "no-such-file.json"], "missing argument 'B'"),
        (["compare", "-", "-"], "both ledgers are to be read from stdin"),
        (["report", "x", "--json", "--format", "csv"], "contradictory: --json and --format csv"),
        (["report", "x", "--format", "pdf"], "'pdf' is not one of"),
    ],
)
def test_a_bad_call_gets_one_line(qmem, arguments: list[str], says: str) -> None:
    answer = qmem(*arguments)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert says in answer.err


def test_a_file_that_cannot_be_written_leaves_nothing(qmem, tmp_path: Path, stored: Path) -> None:
    answer = qmem("report", str(stored), "-o", str(tmp_path / "absent" / "out"))
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "cannot write" in answer.err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a locale by environment")
def test_an_ascii_stdout_gets_no_question_marks(stored: Path, other: Path) -> None:
    command = [sys.executable, "-m", "qmem", "compare", str(stored), str(other)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert b"?" not in done.stdout
    assert b"total allocated" in done.stdout
