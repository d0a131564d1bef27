"""``qmem profile`` as a process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmem.ledger import from_json

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]

RUN_IN_PROCESS = """
import sys
from qmem.cli.app import run
code = run(sys.argv[1:])
print([name for name in ("torch", "transformers", "bitsandbytes") if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def start(model: Path, *arguments: str, steps: int = 2, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", RUN_IN_PROCESS, "profile", str(model), "--steps", str(steps),
         "--phantom", "rtx-4090", *arguments],
        cwd=cwd, env={**os.environ, "COLUMNS": "100"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_page_shows_both_instruments_and_the_verdict_and_the_verb_loads_no_torch(small_model, tmp_path):
    process = start(small_model, "--seq", "64", "--rank", "64", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    for words in ("At the peak", "estimate", "simulated", "Step 1", "Step 2", "Paged memory", "RTX 4090: fits"):
        assert words in out
    assert err.splitlines()[-1] == "[]"
    (stored,) = (tmp_path / "profiles" / "runs").rglob("*.json")
    assert f"stored as {stored.relative_to(tmp_path)}" in err


def test_json_is_the_ledger_alone_and_equals_the_file(small_model, tmp_path):
    process = start(small_model, "--seq", "64", "--json", "-o", "out.json", cwd=tmp_path)
    out, _ = process.communicate()
    assert json.loads(out) == json.loads((tmp_path / "out.json").read_text())
    assert from_json(out).instrument == "phantom profile"
    assert not (tmp_path / "profiles").exists()


def test_an_interrupt_from_the_keyboard_is_130_and_stores_what_was_measured(small_model, tmp_path):
    process = start(small_model, "--seq", "64", steps=2000, cwd=tmp_path)
    time.sleep(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    (stored,) = (tmp_path / "profiles" / "runs").rglob("*.json")
    assert from_json(stored.read_bytes()).ended == "interrupted"
