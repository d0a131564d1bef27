"""What reading counters costs a watched step: a process on the phantom times one step's closings, alone."""

import json
import os
import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from qmem.phantom import availability

pytestmark = pytest.mark.libraries

SCRIPT = """
import json, time, torch
from qmem.profiler.watching.counting import CountingMeter
from qmem.profiler.watching.log import Log
from qmem.profiler.device import DeviceCounters

torch.empty(1000, device="cuda")
log = Log()
meter = CountingMeter(log.take, DeviceCounters(), 0)
times = []
for step in range(1, 2001):
    began = time.process_time_ns()
    for phase in ("forward", "backward", "optimizer step"):
        meter.enter(phase, step)
    times.append((time.process_time_ns() - began) / 1e9)
print(json.dumps(times[-1000:]))
"""


class Elapsed:
    """A clock that is moved on by what another process measured."""

    now = 0.0


@pytest.mark.benchmark(timer=lambda: Elapsed.now)
def test_reading_counters_for_a_step(benchmark: BenchmarkFixture) -> None:
    if not availability().can_run:
        pytest.skip(availability().why)
    command = [sys.executable, "-m", "qmem.phantom", "--gpu", "a100-80", "--", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    times = iter(json.loads(done.stdout))

    def step() -> None:
        Elapsed.now += next(times)

    benchmark.pedantic(step, rounds=1000)
