"""The README shows what the program really prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
SHOWN = re.compile(r"^```console\n\$ (?P<command>qmem [^\n]*)\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)


def shown_commands() -> list[tuple[str, str]]:
    return [(match["command"], match["output"]) for match in SHOWN.finditer(README.read_text())]


def stripped(text: str) -> list[str]:
    """Lines without the spaces that a table pads them with."""
    return [line.rstrip() for line in text.strip().splitlines()]


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
