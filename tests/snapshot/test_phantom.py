"""Snapshots that torch makes here and now, on a phantom GPU, beside what the same process said of itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qmem.phantom import availability
from qmem.snapshot import examine, read_snapshot

pytestmark = pytest.mark.libraries
SCRIPTS = Path(__file__).with_name("scripts")


def record(path, script, *arguments, phantom=(), settings=""):
    """The snapshot's answer, and what the script printed."""
    available = availability()
    if not available.can_run:
        pytest.skip(available.why)
    command = [sys.executable, "-m", "qmem.phantom", "--gpu", "rtx-4090", *phantom, "--", SCRIPTS / script, path]
    done = subprocess.run(
        [*map(str, command), *arguments],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTORCH_ALLOC_CONF": settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return read_snapshot(str(path)), done.stdout


def mebibytes(text):
    return {unit: float(number) for number, unit in re.findall(r"([\d.]+) MiB is (\w+ by PyTorch but|free)", text)}


def test_an_out_of_memory_has_the_figures_of_torchs_own_message(tmp_path):
    snapshot, said = record(tmp_path / "oom.pickle", "train.py", phantom=("--memory", "2GiB"))
    answer = examine(snapshot)
    figures = mebibytes(said)
    assert answer.shortage.device_free_bytes / 2**20 == figures["free"]
    assert round(answer.shortage.free_bytes / 2**20, 2) == figures["reserved by PyTorch but"]
    assert answer.fidelity.is_exact


@pytest.mark.parametrize(
    "settings", ["", "expandable_segments:True", "max_split_size_mb:24,roundup_power2_divisions:4"]
)
def test_the_replay_reserves_what_the_process_reserved(tmp_path, settings):
    snapshot, said = record(
        tmp_path / "late.pickle", "late.py", "100000", phantom=("--devices", "2"), settings=settings
    )
    answer = examine(snapshot, device=0)
    allocated, reserved = map(int, said.split())
    (pool,) = answer.private_pools
    end = answer.moments[-1]
    assert end.reserved_bytes + pool.reserved_bytes == answer.devices[0] == reserved
    assert end.allocated_bytes + pool.allocated_bytes == allocated
    assert answer.settings == (settings or "default")
    assert answer.fidelity.is_exact


@pytest.mark.parametrize(
    ("settings", "seed", "most"),
    [("", 2, 700), ("expandable_segments:True", 3, 150), ("max_split_size_mb:40", 2, 1500)],
)
def test_random_histories_that_begin_anywhere_and_run_out_are_replayed_exactly(tmp_path, settings, seed, most):
    path, phantom = tmp_path / "churn.pickle", ("--memory", "1200MiB")
    snapshot, _ = record(path, "churn.py", str(seed), str(most), phantom=phantom, settings=settings)
    answer = examine(snapshot)
    assert answer.recording.n_events == most or answer.recording.is_whole
    assert answer.fidelity.is_exact
