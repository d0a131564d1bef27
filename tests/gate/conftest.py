"""A project with two estimated scenarios, in a folder of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qmem.gate.scenario import Scenario, make_scenario

PROJECT = """\
[tool.qmem.scenarios.small]
model = "Qwen/Qwen2-1.5B"
batch = 4
seq = 1024

[tool.qmem.scenarios.tiny]
model = "Qwen/Qwen2.5-0.5B"
method = "lora"
seq = 512
budget = "8 GiB"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., Scenario]:
    """A scenario of a small model with some fields of its own."""

    def make(**fields: object) -> Scenario:
        return make_scenario("small", {"model": "Qwen/Qwen2.5-0.5B", "seq": 512, **fields}, tmp_path)

    return make
