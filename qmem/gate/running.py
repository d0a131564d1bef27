"""Runs scenarios, several at once: an estimate in this process, a run in a worker process of its own."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import NamedTuple

from qmem.errors import QmemError
from qmem.gate.scenario import Scenario
from qmem.ledger import Ledger

WORKER_BYTES = 2 * 1024**3
"""Host memory of one worker with room to spare: torch and its relatives take 0.6 to 1.1 GiB on the phantom."""

STOPPING_S = 0.05
"""Seconds between two looks at whether what was interrupted has ended."""


class Measured(NamedTuple):
    """What came of a scenario: its ledger, or why there is none."""

    scenario: Scenario
    ledger: Ledger | None
    error: QmemError | None = None


def run_scenarios(
    scenarios: Sequence[Scenario], folder: Path, *, workers: int, began: Callable[[Scenario], None]
) -> Generator[Measured, None, None]:
    """Measure all, in their order; ``began`` is called as each one starts.

    An interrupt stops those that have not begun, and reaches the caller.
    """

    def run(scenario: Scenario) -> Measured:
        began(scenario)
        try:
            return Measured(scenario, measure_scenario(scenario, folder))
        except QmemError as error:
            return Measured(scenario, None, error)

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(run, scenario) for scenario in scenarios]
        try:
            for future in running:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(running)
            raise


def _stop(running: "Sequence[Future[Measured]]") -> None:
    """Kill what was started until nothing runs: one may just be about to start a process."""
    from qmem.profiler.started import kill_started  # noqa: PLC0415

    while not all(future.done() for future in running):
        kill_started()
        sleep(STOPPING_S)


def workers_that_fit(scenarios: Sequence[Scenario]) -> int:
    """How many scenarios run at once: one a core, and a real GPU is never shared."""
    import os  # noqa: PLC0415

    if any(scenario.instrument == "gpu" for scenario in scenarios):
        return 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else WORKER_BYTES
    return max(1, min(os.cpu_count() or 1, free // WORKER_BYTES, len(scenarios)))


def measure_scenario(scenario: Scenario, folder: Path) -> Ledger:
    """One scenario's ledger.

    Raises:
        QmemError: it contradicts itself, or cannot be measured here.
    """
    if scenario.job is None:
        return _run_program(scenario, folder)
    from qmem.catalogue import find_gpu  # noqa: PLC0415

    gpu = find_gpu(scenario.device) if scenario.device else None
    if scenario.instrument == "estimate":
        from qmem.estimator import estimate  # noqa: PLC0415

        return estimate(scenario.job, gpu, replay="full")
    from qmem.profiler import profile  # noqa: PLC0415

    return profile(scenario.job, phantom=gpu, memory=scenario.memory, steps=scenario.steps)


def _run_program(scenario: Scenario, folder: Path) -> Ledger:
    from qmem.catalogue import find_gpu  # noqa: PLC0415
    from qmem.profiler.programs import run_call, run_program  # noqa: PLC0415

    phantom = find_gpu(scenario.device) if scenario.device else None
    if scenario.command is not None:
        return run_program(scenario.command, folder, phantom=phantom, memory=scenario.memory, steps=scenario.steps)
    assert scenario.call is not None, "a scenario is one of the three"
    return run_call(scenario.call, folder, phantom=phantom, memory=scenario.memory, steps=scenario.steps)
