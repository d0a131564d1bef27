"""Asks the probe, all questions at once, and gives up on one that crashes or does not answer."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

SECONDS = 120
"""A first import of torch from a cold disk takes tens of seconds."""


class GpuSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the driver's API or NVML shows it; a fact that cannot be told is absent."""

    name: str
    total_bytes: int | None = None
    compute_capability: str | None = None
    multiprocessors: int | None = None
    concurrent_managed_access: bool | None = None
    mig: bool | None = None


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """The CUDA driver: the newest CUDA that it can run, its devices, or why there are none."""

    cuda: str | None = None
    gpus: tuple[GpuSeen, ...] = ()
    why_not: str | None = None


class Nvml(msgspec.Struct, frozen=True, kw_only=True):
    """NVIDIA's management library: the driver's version, its devices, or why it does not answer."""

    driver: str | None = None
    gpus: tuple[GpuSeen, ...] = ()
    why_not: str | None = None


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """The build of torch: the CUDA or HIP it was built with, absent for a CPU build, and the GPUs that it can use."""

    version: str | None = None
    cuda: str | None = None
    hip: str | None = None
    gpus: tuple[str, ...] = ()
    why_not: str | None = None


def ask(questions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The answers by question; one that fails answers ``why_not`` with the last line it wrote."""
    command = [sys.executable, "-m", "qmem.doctor.probe"]
    asked = {
        question: subprocess.Popen([*command, question], stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603
        for question in questions
    }
    return {question: _answer(process) for question, process in asked.items()}


def _answer(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"why_not": f"no answer within {SECONDS} s"}
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines()
        return {"why_not": lines[-1] if lines else f"the process ended with code {process.returncode}"}
    answer: dict[str, Any] = msgspec.json.decode(out)
    return answer
