"""What came of a marked test, as it travels: from its process to the one above, and on to ``--qmem-report``.

It owns these values and how they are told apart; nothing is run, measured or written here.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import pytest

from qmem.units import format_bytes

Outcome = Literal["within budget", "over budget", "out of memory", "not measured", "wrong"]
"""Of the memory; ``wrong`` is a mark that says nothing that could be measured."""

Result = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed"]
"""Of the test, in pytest's words."""

FAILING: tuple[Result, ...] = ("failed", "error")


class Holding(msgspec.Struct, frozen=True):
    """A line of Python, what it held at the peak in bytes, and in how many allocations."""

    where: str
    n_bytes: int
    count: int

    def __str__(self) -> str:
        """``3.00 GiB in 3: train.py:7 in step``."""
        return f"{format_bytes(self.n_bytes)} in {self.count}: {self.where}"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a test's process has measured.

    Attributes:
        device: as CUDA calls it.
        simulated: whether it is a phantom.
        peak: bytes that torch had allocated at most, from the first fixture to the end of the call.
        ran_out: whether the test ended because the device had no more memory.
        holdings: the largest at the peak, or where memory ended; left out where nobody asked.
        doubts: what speaks against a simulation.
    """

    device: str
    simulated: bool
    peak: int
    ran_out: bool
    holdings: tuple[Holding, ...] = ()
    doubts: str = ""


class Budgeted(msgspec.Struct, frozen=True, kw_only=True):
    """A marked test in a report; what is not known of it is absent.

    Attributes:
        test: its id.
        outcome: of the memory, until the test ended.
        result: of the test.
        limit: bytes that it may allocate.
        why: what stopped the test, and what speaks against the figures.
        peak, device, simulated, holdings: as they were measured.
    """

    test: str
    outcome: Outcome
    result: Result
    limit: int | None = None
    why: str = ""
    peak: int | None = None
    device: str = ""
    simulated: bool = False
    holdings: tuple[Holding, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether pytest counts the test among those that fail."""
        return self.result in FAILING


def judged(test: str, limit: int, measured: Measured | None, reports: Sequence[pytest.TestReport]) -> Budgeted:
    """What is to be said of a test; there are no figures of one that never began, or whose process died."""
    result, why = result_of(reports), _why(reports)
    began = any(report.when == "call" for report in reports)
    if measured is None or result == "skipped" or not (began or measured.ran_out):
        return Budgeted(test=test, outcome="not measured", result=result, limit=limit, why=why)
    over = measured.peak > limit
    outcome: Outcome = "out of memory" if measured.ran_out else "over budget" if over else "within budget"
    return Budgeted(
        test=test, outcome=outcome, result=result, limit=limit, peak=measured.peak, device=measured.device,
        simulated=measured.simulated, holdings=measured.holdings, why="; ".join(filter(None, (why, measured.doubts))),
    )  # fmt: skip


def result_of(reports: Sequence[pytest.TestReport]) -> Result:
    """pytest's word for a test, from the reports of its phases."""
    if any(report.failed for report in reports):
        return "failed" if any(report.failed and report.when == "call" for report in reports) else "error"
    skipped = [report for report in reports if report.skipped]
    if any(hasattr(report, "wasxfail") for report in reports):
        return "xfailed" if skipped else "xpassed"
    return "skipped" if skipped else "passed"


def _why(reports: Sequence[pytest.TestReport]) -> str:
    """What stopped it: the reason of a skip, the message of an error, or what was said in place of one."""
    stopped = next((report for report in reports if not report.passed), None)
    if stopped is None:
        return ""
    if isinstance(stopped.longrepr, tuple):
        return str(stopped.longrepr[2])
    crash = getattr(stopped.longrepr, "reprcrash", None)
    return crash.message.partition("\n")[0] if crash else stopped.longreprtext.strip()
