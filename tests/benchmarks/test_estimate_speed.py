"""How fast an estimate is: the whole process, and in process.  No assertion on time."""

import os
import subprocess
import sys

from qmem import Job, estimate

README_JOB = [sys.executable, "-m", "qmem", "estimate", "Qwen3-14B", "--rank", "8"]


def test_the_readme_command_cold(benchmark):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = benchmark.pedantic(
        subprocess.run,
        args=(README_JOB,),
        kwargs={"capture_output": True, "env": environment},
        rounds=7,
        warmup_rounds=1,
    )
    assert run.returncode == 0
    assert b"total reserved" in run.stdout


def test_eighty_layers_without_replay(benchmark):
    ledger = benchmark(estimate, Job(model="Meta-Llama-3.1-70B", rank=16), replay="none")
    assert ledger.peak.reserved_bytes is None


def test_fourteen_billion_with_the_full_replay(benchmark):
    ledger = benchmark.pedantic(estimate, args=(Job(model="Qwen3-14B", rank=8),), kwargs={"replay": "full"}, rounds=5)
    assert ledger.peak.reserved_bytes > ledger.peak.allocated_bytes
