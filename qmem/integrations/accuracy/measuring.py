"""Runs the jobs of a grid on the phantom GPU, each in a worker process, and keeps their ledgers."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qmem.catalogue import find_gpu
from qmem.errors import QmemError, UnavailableError
from qmem.integrations.accuracy.grid import CAPACITY, Entry, Refused, read_measured, store_measured
from qmem.ledger import Ledger
from qmem.profiler import profile

STEPS = 2
"""The second step is a steady one."""


def measure(entries: Sequence[Entry], folder: Path, *, workers: int, done: Callable[[Entry], None]) -> None:
    """Measure what is not in ``folder`` yet; ``done`` is called after each job.  What is stored is never lost.

    Raises:
        UnavailableError: this machine cannot run the phantom.
    """
    missing = [entry for entry in entries if read_measured(folder, entry.name) is None]

    def run(entry: Entry) -> None:
        store_measured(folder, entry.name, _measured(entry))
        done(entry)

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(run, entry) for entry in missing]
        try:
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _measured(entry: Entry) -> Ledger | Refused:
    try:
        return profile(entry.job, phantom=find_gpu(entry.gpu), memory=CAPACITY, steps=STEPS)
    except UnavailableError:
        raise
    except QmemError as error:
        return Refused(error.message)
