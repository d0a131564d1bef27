"""The command line as tests call it: in this process, or as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from qmem.cli.app import run


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def qmem(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Runs the command line in this process, at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> Answer:
        code = run(list(arguments))
        return Answer(code, *capfd.readouterr())

    return call


@pytest.fixture
def qmem_process() -> Callable[..., Answer]:
    """Runs ``python -m qmem`` with some environment variables changed."""

    def call(*arguments: str, **environment: str) -> Answer:
        inherited = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
        done = subprocess.run(
            [sys.executable, "-m", "qmem", *arguments],
            capture_output=True,
            env={**inherited, "COLUMNS": "80", **environment},
            check=False,
        )
        encoding = environment.get("PYTHONIOENCODING", "utf-8")
        return Answer(done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding))

    return call
