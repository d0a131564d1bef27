"""``qmem check`` and ``qmem baseline`` as a user and a CI runner call them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmem.cli.app import run

HERE = Path(__file__).parent


@pytest.fixture
def qmem(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        code = run(list(arguments))
        out, err = capfd.readouterr()
        return code, out, err

    return call


def change(project: Path, before: str, after: str) -> None:
    path = project / "pyproject.toml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def test_from_nothing_to_a_caught_regression(project, qmem):
    code, out, _ = qmem("check")
    assert code == 3
    assert "qmem baseline update --only small" in out
    code, out, _ = qmem("baseline", "update", "--reason", "first")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["small", "tiny"]
    code, out, _ = qmem("check")
    assert code == 0
    assert "2 scenarios: 2 unchanged." in out
    change(project, "batch = 4", "batch = 5")
    code, out, _ = qmem("check")
    assert code == 1
    assert "changed: batch 4 -> 5" in out
    assert "logits and loss" in out
    assert qmem("check", "tiny")[0] == 0


def test_a_drop_fails_only_where_it_is_asked_to(project, qmem):
    qmem("baseline", "update", "--reason", "first")
    change(project, "batch = 4", "batch = 3")
    assert qmem("check")[0] == 0
    assert qmem("check", "--strict")[0] == 1


def test_usage_goes_before_a_finding_before_what_cannot_be_compared(project, qmem):
    qmem("baseline", "update", "--only", "small", "--reason", "first")
    change(project, "batch = 4", "batch = 5")
    assert qmem("check")[0] == 1
    change(project, "batch = 5", "attention = 'flash_attention_2'")
    code, out, _ = qmem("check")
    assert code == 2
    assert "1 wrong, 1 no baseline" in out


def test_a_baseline_reads_one_figure_a_line(project, qmem):
    qmem("baseline", "update", "--only", "tiny", "--reason", "because")
    text = (project / "profiles" / "baselines" / "tiny.json").read_text()
    baseline = json.loads(text)
    assert list(baseline) == sorted(baseline)
    assert list(baseline["figures"]) == sorted(baseline["figures"])
    assert baseline["passport"]["reason"] == "because"
    assert all(isinstance(n_bytes, int) for n_bytes in baseline["figures"].values())
    lines = text[text.index('"figures"') :].splitlines()[1:]
    assert lines[: len(baseline["figures"])] == [
        f'  "{name}": {n_bytes}{"," if index < len(baseline["figures"]) - 1 else ""}'
        for index, (name, n_bytes) in enumerate(baseline["figures"].items())
    ]


def test_two_updates_differ_in_their_date_alone(project, qmem):
    path = project / "profiles" / "baselines" / "tiny.json"
    texts = []
    for _ in range(2):
        qmem("baseline", "update", "--only", "tiny", "--reason", "again")
        texts.append([line for line in path.read_text().splitlines() if '"date"' not in line])
    assert texts[0] == texts[1]


def test_a_tree_that_is_not_committed_makes_no_baseline(project, qmem):
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    change(project, "batch = 4", "batch = 5")
    code, _, err = qmem("baseline", "update", "--reason", "first")
    assert code == 2
    assert "pyproject.toml is changed and not committed" in err
    assert not (project / "profiles").exists()
    assert qmem("baseline", "update", "--reason", "first", "--allow-dirty")[0] == 0
    change(project, "batch = 5", "batch = 4")
    assert qmem("baseline", "update", "--reason", "profiles may differ")[0] == 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    stored = json.loads((project / "profiles" / "baselines" / "tiny.json").read_text())
    assert stored["passport"]["commit"] == commit.stdout.strip()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}', '{"figures": {"a": "b"}}'])
def test_a_broken_baseline_is_one_clear_message(project, qmem, text):
    path = project / "profiles" / "baselines" / "tiny.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    code, out, _ = qmem("check")
    said = " ".join(out.split())
    assert code == 2
    assert "tiny.json is no baseline" in said
    assert "make it again with qmem baseline update" in said
    assert "1 no baseline, 1 wrong" in said


def test_a_baseline_of_another_schema_is_refused(project, qmem):
    qmem("baseline", "update", "--only", "tiny", "--reason", "first")
    path = project / "profiles" / "baselines" / "tiny.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    code, out, _ = qmem("check", "tiny")
    assert code == 2
    assert "has schema version 2, this qmem reads 1" in " ".join(out.split())


def test_what_cannot_be_stored_leaves_what_was_there(project, qmem):
    qmem("baseline", "update", "--only", "tiny", "--reason", "first")
    folder = project / "profiles" / "baselines"
    before = (folder / "tiny.json").read_bytes()
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); import signal; "
    limited += (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from qmem.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    words = ["baseline", "update", "--only", "tiny", "--reason", "full disk"]
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "the baseline cannot be stored" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["tiny.json"]
    assert (folder / "tiny.json").read_bytes() == before


def test_where_nothing_can_be_stored_nothing_is_measured(project, qmem):
    (project / "profiles").write_text("a file")
    code, out, err = qmem("baseline", "update", "--reason", "first")
    assert (code, out) == (3, "")
    assert "profiles is no folder" in err


def test_a_reason_that_says_nothing_is_refused(project, qmem):
    code, _, err = qmem("baseline", "update", "--reason", " ")
    assert code == 2
    assert "--reason is empty" in err
    assert not (project / "profiles").exists()


@pytest.mark.usefixtures("project")
def test_a_reason_is_shown_as_it_was_written(qmem):
    qmem("baseline", "update", "--only", "tiny", "--reason", "see [/tmp] or [bold]")
    assert "[/tmp]" in qmem("baseline", "show", "tiny")[1]


def test_what_a_killed_update_left_goes_with_a_later_one(project, qmem):
    folder = project / "profiles" / "baselines"
    folder.mkdir(parents=True)
    old, new = (folder / f"tiny.json.{word}.part" for word in ("old", "new"))
    for part in (old, new):
        part.write_text("{")
    os.utime(old, (0, 0))
    assert qmem("baseline", "update", "--only", "tiny", "--reason", "first")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.json", new.name]


def test_killed_at_any_moment_a_baseline_is_whole(project, qmem):
    qmem("baseline", "update", "--only", "tiny", "--reason", "first")
    path = project / "profiles" / "baselines" / "tiny.json"
    words = [sys.executable, "-m", "qmem", "baseline", "update", "--only", "tiny", "--reason", "killed"]
    for delay in (0.1, 0.25, 0.4):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert json.loads(path.read_text())["scenario"] == "tiny"
    assert qmem("check", "tiny")[0] == 0


def test_two_updates_at_once_leave_a_whole_baseline(project, qmem):
    words = [sys.executable, "-m", "qmem", "baseline", "update", "--only", "tiny", "--reason", "at once"]
    processes = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [path.name for path in (project / "profiles" / "baselines").iterdir()] == ["tiny.json"]
    assert qmem("check", "tiny")[0] == 0


def test_show_and_diff(project, qmem):
    assert qmem("baseline", "show")[0] == 3
    qmem("baseline", "update", "--reason", "first")
    code, out, _ = qmem("baseline", "show", "small")
    assert code == 0
    assert "first" in out
    assert json.loads(qmem("baseline", "diff", "--json")[1]) == {"small": {}, "tiny": {}}
    change(project, "batch = 4", "batch = 5")
    moved = json.loads(qmem("baseline", "diff", "small", "--json")[1])["small"]
    was, now = moved["step 2 loss | peak allocated"]
    assert now > was


@pytest.mark.parametrize("form", ["json", "markdown", "github", "junit", "benchmark"])
def test_a_form_can_be_written_to_a_file(project, qmem, form):
    qmem("baseline", "update", "--only", "tiny", "--reason", "first")
    code, out, err = qmem("check", "tiny", "--format", form, "-o", "result")
    assert (code, out) == (0, "")
    assert "written to result" in err
    assert (project / "result").read_text() == qmem("check", "tiny", "--format", form)[1]


def test_outside_a_project_one_line_says_what_to_write(tmp_path, monkeypatch, qmem):
    monkeypatch.chdir(tmp_path)
    code, out, err = qmem("check")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "[tool.qmem.scenarios.train]" in err


@pytest.mark.usefixtures("project")
def test_two_forms_at_once_are_refused(qmem):
    code, out, err = qmem("check", "--json", "--format", "markdown")
    assert code == 2
    assert json.loads(out)["error"]["code"] == "usage"
    assert "contradictory: --json and --format markdown" in err
