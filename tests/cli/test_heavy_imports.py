"""The planning half never loads the libraries it plans for; a test shows that this test can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "pandas", "numpy", "pydantic")

WATCH = f"""
import sys
{{before}}
try:
    {{program}}
finally:
    print("LOADED", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""

PROGRAMS = {
    "import qmem": "import qmem; qmem.Job, qmem.estimate",
    "help": "from qmem.cli.app import run; run(['--help'])",
    **{
        " ".join(arguments): f"from qmem.cli.app import run; assert run({arguments!r}) == 0"
        for arguments in (
            ["estimate", "--help"],
            ["estimate", "Qwen3-0.6B", "--gpu", "a100-80"],
            ["estimate", "Qwen3-0.6B", "--json", "--replay"],
            ["estimate", "Qwen3-0.6B", "--explain", "weights"],
            ["estimate", "Qwen3-0.6B", "--rule-of-thumb"],
            ["models"],
            ["gpus"],
            ["report", "--help"],
            ["compare", "--help"],
            ["snapshot", str(Path(__file__).parent.parent / "snapshot" / "golden" / "out-of-memory.pickle")],
            ["doctor"],
        )
    },
}


def loaded(program: str, before: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(program=program, before=before)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_nothing_heavy_is_loaded(program: str) -> None:
    assert loaded(program) == "LOADED []"


def test_this_test_can_fail(tmp_path: Path) -> None:
    """A module that imports torch, here a stand-in of that name, is found out when a verb loads it."""
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "careless.py").write_text("import torch\n")
    careless = f"sys.path.insert(0, {str(tmp_path)!r}); import qmem.cli.models; import careless"
    assert loaded(PROGRAMS["models"], before=careless) == "LOADED ['torch']"
