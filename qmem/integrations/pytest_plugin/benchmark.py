"""The fixture ``qmem_benchmark``: peak memory and estimate beside the time, and their comparison with stored runs.

pytest-benchmark keeps ``extra_info`` with every run and never compares it; that is done here, by the gate's tolerances.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from qmem.gate.judging import EXACT, MEASURED, Tolerance
from qmem.integrations.pytest_plugin import STORED_RUNS
from qmem.job import Job
from qmem.ledger import Ledger
from qmem.units import format_bytes

PEAK, ESTIMATE, SIMULATED = "qmem_peak_bytes", "qmem_estimate_bytes", "qmem_simulated"
"""Names in ``extra_info``."""

TOLERANCES: dict[str, tuple[str, Tolerance]] = {
    PEAK: ("peak allocated", MEASURED),
    ESTIMATE: ("estimated peak", EXACT),
}


class MeasuredBenchmark:
    """``benchmark`` as pytest-benchmark has it, with memory in its ``extra_info``."""

    def __init__(self, benchmark: Any) -> None:
        self.benchmark = benchmark

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Time a function, and keep the most that torch allocated meanwhile, or what the ledger it returns says.

        Without torch in this process, or without a GPU, nothing is kept of the memory.
        """
        memory = _cuda()
        if memory is not None:
            memory.reset_peak_memory_stats()
        result = self.benchmark(function, *args, **kwargs)
        if isinstance(result, Ledger):
            self._keep(result)
        elif memory is not None:
            self.benchmark.extra_info[PEAK] = int(memory.max_memory_allocated())
        return result

    def estimate(self, job: Job, gpu: str | None = None) -> Ledger:
        """Keep the estimated peak of a job, with the kernels of a card."""
        from qmem.catalogue import find_gpu  # noqa: PLC0415
        from qmem.estimator import estimate  # noqa: PLC0415

        ledger = estimate(job, find_gpu(gpu) if gpu else None)
        self._keep(ledger)
        return ledger

    def _keep(self, ledger: Ledger) -> None:
        info = self.benchmark.extra_info
        if ledger.instrument == "estimate":
            info[ESTIMATE] = ledger.peak.allocated_bytes
            return
        info[PEAK] = ledger.peak.allocated_bytes
        if ledger.instrument == "phantom profile":
            info[SIMULATED] = True


def _cuda() -> Any:
    """``torch.cuda`` where the program has loaded it and there is a device; it is not loaded for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


class Growth(NamedTuple):
    """A figure of a benchmark that is larger than in a stored run by more than it may be."""

    benchmark: str
    what: str
    was: int
    now: int

    def __str__(self) -> str:
        """``test_step: peak allocated 1.00 GiB -> 1.20 GiB (+214,748,364 B)``."""
        amounts = f"{format_bytes(self.was)} -> {format_bytes(self.now)} ({self.now - self.was:+,} B)"
        return f"{self.benchmark}: {self.what} {amounts}"


def growths(stored: dict[str, Any], now: dict[str, dict[str, Any]]) -> Iterator[Growth]:
    """What grew between a stored run of pytest-benchmark and the ``extra_info`` of this one, by benchmark."""
    for benchmark in stored["benchmarks"]:
        name, before = benchmark["fullname"], benchmark.get("extra_info", {})
        after = now.get(name, {})
        if before.get(SIMULATED) == after.get(SIMULATED):
            yield from _grown(name, before, after)


def _grown(name: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[Growth]:
    for key, (what, tolerance) in TOLERANCES.items():
        if key in before and key in after and after[key] - before[key] > tolerance.limit(before[key]):
            yield Growth(name, what, before[key], after[key])


class MemoryComparison:
    """Compares the memory of this session's benchmarks with the stored runs, and fails the session where it grew."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._grown: list[Growth] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Memory that grew is a failure, as ``qmem check`` has it."""
        benchmarks = self._config._benchmarksession.benchmarks  # type: ignore[attr-defined]  # noqa: SLF001
        now = {benchmark.fullname: benchmark.extra_info for benchmark in benchmarks}
        self._grown = [growth for run in self._config.stash[STORED_RUNS] for growth in growths(run, now)]
        if self._grown and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What grew, a line each."""
        if self._grown:
            terminalreporter.section("qmem: memory grew since the stored benchmarks")
            for growth in self._grown:
                terminalreporter.write_line(str(growth), red=True)
