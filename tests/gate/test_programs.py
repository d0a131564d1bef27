"""Scenarios that are a program: how it is started, found, ended, and what is said where it fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmem.catalogue import find_gpu
from qmem.errors import UnavailableError, UsageError
from qmem.phantom import availability
from qmem.profiler.programs import run_call, run_program

pytestmark = pytest.mark.libraries

LOOP = """
import os, subprocess, sys, time
from pathlib import Path

def train(steps=100, width=1024, rows=64):
    import torch
    with torch.device("cuda"):
        model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, width))
    optimizer = torch.optim.SGD(model.parameters())
    for step in range(steps):
        loss = model(torch.ones(rows, width, device="cuda")).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print("trained to the end")

def too_wide():
    train(width=200_000)

def too_many_rows():
    train(rows=10_000_000)

def sleep():
    Path("sleeps.part").write_text(str(os.getpid()))
    Path("sleeps.part").replace("sleeps")
    time.sleep(300)

if __name__ == "__main__":
    what = sys.argv[1]
    if what == "child":
        sys.exit(subprocess.run([sys.executable, __file__, "train"]).returncode)
    elif what == "crash":
        raise RuntimeError("the data set is not there")
    elif what == "killed":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "three":
        train(3)
    elif what == "nothing":
        print("nothing to do")
    else:
        globals()[what]()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    if not availability().can_run:
        pytest.skip(availability().why)
    (tmp_path / "loop.py").write_text(LOOP)
    return tmp_path


def run(project, *words, steps=2):
    return run_program(("python", "loop.py", *words), project, phantom=find_gpu("a100-80"), steps=steps)


def last_step(ledger):
    return max(reading.moment.step for reading in ledger.readings)


def test_a_program_that_a_program_starts_is_found_and_ended_when_enough_was_seen(project):
    ledger = run(project, "child")
    assert (ledger.watched, ledger.model, ledger.instrument) == (
        "python loop.py child", "Sequential", "phantom profile",
    )  # fmt: skip
    assert last_step(ledger) == 2
    assert (ledger.ended, ledger.state) == ("complete", "clean")
    assert ledger.parameters.total == 2 * (1024 * 1024 + 1024)


def test_a_program_that_ends_early_is_measured_as_far_as_it_goes(project):
    ledger = run(project, "three", steps=5)
    assert last_step(ledger) == 3
    assert ledger.ended == "complete"
    assert any("ended before" in sentence for sentence in ledger.warnings)


def test_a_callable_is_called_in_the_project(project):
    ledger = run_call("loop:train", project, phantom=find_gpu("a100-80"), steps=2)
    assert (ledger.watched, last_step(ledger)) == ("loop:train", 2)


@pytest.mark.parametrize(("function", "phase"), [("too_wide", "load"), ("too_many_rows", "forward of step 1")])
def test_out_of_memory_is_how_a_run_ends_whenever_it_comes(project, function, phase):
    ledger = run_call(f"loop:{function}", project, phantom=find_gpu("a100-80"), steps=2)
    assert ledger.ended == "out of memory"
    assert f"the run ended early in the {phase}, out of memory" in ledger.warnings[0]
    assert "memory ended where torch asked for" in ledger.warnings[1]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["crash"], UsageError, "loop.py crash ended with exit code 1.*the data set is not there"),
        (["nothing"], UsageError, "no training step on the GPU was seen.*nothing to do"),
        (["killed"], UnavailableError, "was killed by SIGKILL"),
    ],
)
def test_a_program_without_a_result_says_its_last_words(project, words, error, message):
    with pytest.raises(error, match=message):
        run(project, *words)


def test_a_program_or_function_that_is_not_there_is_named(project):
    with pytest.raises(UsageError, match="there is no program 'trian'"):
        run_program(("trian",), project)
    with pytest.raises(UsageError, match="the module loop has no function 'trian'"):
        run_call("loop:trian", project, phantom=find_gpu("a100-80"))


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_program_too(project, told):
    (project / "qmem.toml").write_text('[scenarios.one]\ncall = "loop:sleep"\ninstrument = "phantom"\ndevice = "l4"\n')
    command = [sys.executable, "-m", "qmem", "check"]
    with subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as check:
        for _ in range(600):
            if (project / "sleeps").exists():
                break
            time.sleep(0.1)
        os.kill(check.pid, told)
        assert check.wait(60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((project / "sleeps").read_text()), 0)
