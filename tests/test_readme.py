"""The README shows what the program really prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
SHOWN = re.compile(r"^```console\n\$ (?P<command>qmem [^\n]*)\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)


CAUGHT = re.compile(r"^<!-- caught regression -->\n```text\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)
SCENARIO = re.compile(r"^```toml\n(?P<table>\[tool\.qmem\.scenarios\.train\].*?)^```$", re.MULTILINE | re.DOTALL)
AT_80_COLUMNS = {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}


def caught_regression(folder):
    """What the README says that ``qmem check`` prints, made as it says."""
    table = SCENARIO.search(README.read_text())["table"]

    def qmem(*words):
        program = [sys.executable, "-m", "qmem", *words]
        environment = {**os.environ, **AT_80_COLUMNS}
        return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    (folder / "pyproject.toml").write_text(table)
    assert qmem("baseline", "update", "--reason", "the first figures").returncode == 0
    (folder / "pyproject.toml").write_text(table.replace("checkpointing = true", "checkpointing = false"))
    checked = qmem("check")
    assert checked.returncode == 1, checked.stderr
    return checked.stdout


def shown_commands() -> list[tuple[str, str]]:
    return [(match["command"], match["output"]) for match in SHOWN.finditer(README.read_text())]


def stripped(text: str) -> list[str]:
    """Lines without the spaces that a table pads them with."""
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def test_the_readme_opens_with_the_command_and_its_output():
    command, output = shown_commands()[0]
    assert command == "qmem estimate Qwen3-14B --rank 8"
    assert "total reserved" in output


@pytest.mark.parametrize(("command", "output"), shown_commands(), ids=[command for command, _ in shown_commands()])
def test_every_command_shown_prints_what_is_shown(command, output):
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, "-m", "qmem", *command.split()[1:]]
    printed = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert stripped(printed.stdout) == stripped(output), f"run tests/update_readme.py to renew the README ({command})"


def test_the_regression_that_is_shown_is_caught(tmp_path):
    shown = CAUGHT.search(README.read_text())["output"]
    assert stripped(caught_regression(tmp_path)) == stripped(shown), "run tests/update_readme.py to renew the README"
