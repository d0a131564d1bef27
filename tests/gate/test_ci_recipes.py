"""The GitHub action and the recipes of docs/ci.md: read as their services read them, and their scripts run by bash."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qmem.gate import read_scenarios

ROOT = Path(__file__).parent.parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
EXPRESSION = re.compile(r"\$\{\{ (.*?) \}\}")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    text = (ROOT / "docs" / "ci.md").read_text()
    return [body for word, body in BLOCK.findall(text) if word == language]


@pytest.fixture
def bash(project, tmp_path):
    """A script as a runner has it: ``bash -eo pipefail``, qmem on the path, files for its outputs."""

    def run(script, **environment):
        path = os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
        files = {"GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=project,
            env={**os.environ, "PATH": path, "COLUMNS": "80", **files, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def step(bash):
    """A step of the action, with some of its inputs and contexts."""

    def run(name, **given):
        values = {f"inputs.{key}": one["default"] for key, one in ACTION["inputs"].items()} | given
        environment = {
            key: EXPRESSION.sub(lambda match: values[match[1]], text) for key, text in STEPS[name]["env"].items()
        }
        return bash(STEPS[name]["run"], **environment)

    return run


def test_the_action_is_whole():
    assert ACTION["runs"]["using"] == "composite"
    assert all(step["shell"] == "bash" for step in STEPS.values())
    assert all(one["description"] for one in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])


def test_no_input_is_pasted_into_a_script():
    assert not any(EXPRESSION.search(step["run"]) for step in STEPS.values())


def outputs(tmp_path):
    return dict(line.split("=") for line in (tmp_path / "output").read_text().splitlines())


def test_the_step_fails_without_a_baseline_or_passes_with_a_warning(step, project, tmp_path):
    done = step("Check peak memory")
    assert done.returncode == 3
    assert done.stdout.count("::error ") == 2
    assert outputs(tmp_path) == {"exit-code": "3", "reports": "./qmem-reports"}
    assert (tmp_path / "summary").read_text().startswith("<!-- qmem:report -->")
    written = {path.name for path in (project / "qmem-reports").iterdir()}
    assert written == {"qmem.md", "qmem.json", "qmem.xml", "qmem-benchmark.json"}
    done = step("Check peak memory", **{"inputs.uncomparable": "pass"})
    assert done.returncode == 0
    assert "::warning title=qmem::" in done.stdout


def test_the_step_runs_the_scenarios_that_are_named_and_knows_a_drop(step, bash, project, tmp_path):
    assert bash("qmem baseline update --reason first").returncode == 0
    done = step("Check peak memory", **{"inputs.scenarios": "tiny small"})
    assert (done.returncode, done.stdout) == (0, "2 scenarios: 2 unchanged.\n")
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("batch = 4", "batch = 3"))
    assert step("Check peak memory", **{"inputs.scenarios": "tiny"}).stdout == "1 scenario: 1 unchanged.\n"
    assert step("Check peak memory").returncode == 0
    assert step("Check peak memory", **{"inputs.strict": "true"}).returncode == 1
    assert outputs(tmp_path)["exit-code"] == "1"


GH = """#!/bin/sh
echo "$@" >> calls
case "$*" in *--paginate*) cat comment-id ;; esac
"""


@pytest.mark.parametrize(
    ("known", "called"),
    [
        ("", "api --method POST repos/me/mine/issues/7/comments -F body=@page.md"),
        ("31\n32\n", "api --method PATCH repos/me/mine/issues/comments/31 -F body=@page.md"),
    ],
    ids=["the first", "an update"],
)
def test_the_comment_is_written_once_and_then_updated(bash, project, tmp_path, known, called):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gh").write_text(GH)
    (tmp_path / "bin" / "gh").chmod(0o755)
    (project / "comment-id").write_text(known)
    script = STEPS["Comment on the pull request"]["run"]
    given = {"NUMBER": "7", "PAGE": "page.md", "GITHUB_REPOSITORY": "me/mine", "GH_TOKEN": "none"}
    assert bash(script, **given).returncode == 0
    assert not (project / "calls").exists(), "without a report there is nothing to say"
    (project / "page.md").write_text("<!-- qmem:report -->")
    assert bash(script, **given).returncode == 0
    listed, written = (project / "calls").read_text().splitlines()
    assert listed.startswith("api repos/me/mine/issues/7/comments --paginate --jq ")
    assert written == called


def test_the_workflow_of_the_documentation_gives_inputs_that_exist():
    workflow, _ = map(yaml.safe_load, blocks("yaml"))
    (used,) = [step for step in workflow["jobs"]["memory"]["steps"] if "qmem@" in step["uses"]]
    assert set(used["with"]) <= set(ACTION["inputs"])


def test_the_gitlab_job_writes_what_it_keeps(bash, project):
    _, recipe = map(yaml.safe_load, blocks("yaml"))
    install, *script = recipe["qmem"]["script"]
    assert install.startswith("pip install ")
    done = bash("\n".join(script))
    assert done.returncode in recipe["qmem"]["allow_failure"]["exit_codes"]
    artifacts = recipe["qmem"]["artifacts"]
    for name in (artifacts["reports"]["junit"], *artifacts["paths"]):
        assert (project / name).is_file()


def test_the_scenarios_of_the_documentation_can_be_read(project):
    (scenarios,) = blocks("toml")
    (project / "pyproject.toml").write_text(scenarios)
    assert set(read_scenarios(project).by_name) == {"estimated", "simulated"}


@pytest.mark.parametrize("written", ["junit", "junit=", "table=page.txt", "=page.xml"])
def test_a_further_form_that_cannot_be_written_is_refused_before_anything_runs(bash, written):
    done = bash(f"qmem check --write {written}")
    assert done.returncode == 2
    assert f"--write '{written}' is not FORMAT=FILE" in done.stderr
