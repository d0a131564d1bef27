"""The parent's side of a marked test: what its mark means, its reports, and what is said where it cannot run.

One process can have one phantom, and this one may have imported torch already; so a marked test never runs here.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from qmem.errors import QmemError, UnavailableError, UsageError
from qmem.integrations.pytest_plugin import BUDGETED, MARK, process
from qmem.integrations.pytest_plugin.budgeted import Budgeted, judged, result_of
from qmem.integrations.pytest_plugin.process import Answers, Budget
from qmem.units import format_bytes, parse_bytes

NO_DEBUGGER = "--pdb does not reach the process of this test; breakpoint() does with -s, and -p no:qmem runs it here"

EXAMPLE = 'write qmem_budget("11.5 GiB", device="rtx-4090")'


class Attempt(NamedTuple):
    """A test that was run, or why it could not be: its limit as far as it is known, what came back, what was wrong."""

    limit: int | None
    answers: Answers
    error: QmemError | None = None


def run_alone(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Run a marked test in its own process and report it as if it had run here.

    Raises:
        KeyboardInterrupt: the test was interrupted, or asked pytest to exit.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    attempt = _attempt(item)
    reports = list(_reports(item, attempt))
    _log(item, reports)
    for warning in attempt.answers.warnings:
        _pass_on(item, warning)
    _interrupt(attempt.answers.interruption)
    ends = _ends(item, nextitem, attempt.answers.reports)
    budgeted = _budgeted(item, attempt, [*reports, *ends])
    ends[-1].__dict__[BUDGETED] = msgspec.json.encode(budgeted).decode()
    _log(item, ends)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _attempt(item: pytest.Item) -> Attempt:
    limit = None
    try:
        budget = budget_of(_mark_of(item))
        limit = budget.limit
        return Attempt(limit, process.run(item, budget))
    except QmemError as error:
        return Attempt(limit, Answers([], []), error)
    except pytest.fail.Exception as failure:  # the alarm of pytest-timeout
        return Attempt(limit, Answers([], [], death=f"was ended from here: {failure.msg}"))


def _reports(item: pytest.Item, attempt: Attempt) -> Iterator[pytest.TestReport]:
    """Those of the test's process before its teardown, or one that says why there is none."""
    if attempt.error is not None:
        yield _report(item, "setup", _refusal(item, attempt.error))
    for report in attempt.answers.reports:
        if report.failed and item.config.getoption("usepdb", default=False):
            report.sections.append(("qmem", NO_DEBUGGER))
        if report.when != "teardown":
            yield report
    if attempt.answers.death:
        when = "call" if any(report.when == "setup" for report in attempt.answers.reports) else "setup"
        yield _report(item, when, _fails(f"qmem_budget: the process of this test {attempt.answers.death}"))


def _ends(
    item: pytest.Item, nextitem: pytest.Item | None, there: Sequence[pytest.TestReport]
) -> list[pytest.TestReport]:
    """The teardown: that of the test's process, which has its output, unless what is torn down here fails.

    Here it is what other tests have set up and the next one does not need.
    """
    shared = item.session._setupstate  # noqa: SLF001 - the hook would miss its setup of this test
    here = _report(item, "teardown", lambda: shared.teardown_exact(nextitem))
    last = next((report for report in there if report.when == "teardown"), None)
    if last is None:
        return [here]
    if here.passed:
        return [last]
    here.sections[:0], here.user_properties = last.sections, last.user_properties
    return [last, here] if last.failed else [here]


def _budgeted(item: pytest.Item, attempt: Attempt, reports: Sequence[pytest.TestReport]) -> Budgeted:
    if attempt.error is None:
        return judged(item.nodeid, attempt.limit or 0, attempt.answers.measured, reports)
    return Budgeted(
        test=item.nodeid,
        outcome="not measured" if isinstance(attempt.error, UnavailableError) else "wrong",
        result=result_of(reports),
        limit=attempt.limit,
        why=str(attempt.error),
    )


def _log(item: pytest.Item, reports: Sequence[pytest.TestReport]) -> None:
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)


def _pass_on(item: pytest.Item, told: dict[str, Any]) -> None:
    """Have a warning recorded that the test's process let pass; whether it was an error was decided there."""
    category, text = getattr(sys.modules.get(told["module"]), told["name"], None), told["text"]
    if not isinstance(category, type):  # of a library that only the test has imported
        category, text = UserWarning, f"{told['module']}.{told['name']}: {text}"
    message = warnings.WarningMessage(text, category, told["file"], told["line"])
    item.ihook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": "runtest", "nodeid": item.nodeid, "location": None}
    )


def _interrupt(by: tuple[str, str, int | None] | tuple[()]) -> None:
    if not by:
        return
    name, message, code = by
    if name == "Exit":
        pytest.exit(message, code)
    raise KeyboardInterrupt(message)


def _mark_of(item: pytest.Item) -> pytest.Mark:
    """The mark that counts: that of the test, or else of its class or module."""
    marks = [mark for mark in item.own_markers if mark.name == MARK]
    if len(marks) > 1:
        raise UsageError(
            f"this test has {len(marks)} marks of its own, and only one could hold",
            hint="give each case its own: pytest.param(…, marks=pytest.mark.qmem_budget(…))",
        )
    closest = item.get_closest_marker(MARK)
    assert closest is not None, "only marked tests come here"
    if item.config.getoption("trace", default=False) and item.config.getoption("capture", "fd") != "no":
        raise UsageError("--trace reaches the process of this test only where nothing is captured", hint="add -s")
    return closest


def budget_of(mark: pytest.Mark) -> Budget:
    """What the arguments of a mark mean.

    Raises:
        UsageError: an argument is missing, unknown or wrong.
        UnavailableError: the device cannot be simulated here, or there is no torch.
    """
    amount, device, beside_driver = _arguments(mark)
    limit = _limit(amount)
    if device is None:
        return Budget(limit, "", {})
    from qmem.catalogue import find_gpu  # noqa: PLC0415
    from qmem.phantom import loader  # noqa: PLC0415

    gpu = find_gpu(str(device))
    if limit > gpu.total_bytes:
        has = format_bytes(gpu.total_bytes)
        raise UsageError(f"the budget of {format_bytes(limit)} is more than {gpu.name} has, {has}")
    phantom = loader.describe(gpu)
    loader.refuse_bad_place(beside_driver=beside_driver)
    return Budget(limit, phantom.name, phantom.environment())


def _limit(amount: Any) -> int:
    if isinstance(amount, str):
        return parse_bytes(amount)
    if not isinstance(amount, int) or isinstance(amount, bool) or amount < 0:
        raise UsageError(f"not an amount of memory: {amount!r}", hint='write for example "11.5 GiB", or bytes')
    return amount


def _arguments(mark: pytest.Mark) -> tuple[Any, Any, bool]:
    def arguments(amount: Any, device: Any = None, *, beside_driver: bool = False) -> tuple[Any, Any, bool]:
        return amount, device, beside_driver

    try:
        return arguments(*mark.args, **mark.kwargs)
    except TypeError as error:
        raise UsageError(f"the mark {str(error).rpartition('arguments() ')[2]}", hint=EXAMPLE) from error


def _refusal(item: pytest.Item, error: QmemError) -> Callable[[], None]:
    if not isinstance(error, UnavailableError):
        return _fails(f"qmem_budget: {error}")
    if not item.config.getoption("qmem_skip_unavailable"):
        return _fails(f"qmem_budget cannot measure here: {error} (--qmem-skip-unavailable skips such tests)")

    def skip() -> None:
        raise pytest.skip.Exception(f"qmem_budget cannot measure here: {error}", _use_item_location=True)

    return skip


def _fails(text: str) -> Callable[[], None]:
    def fail() -> None:
        pytest.fail(text, pytrace=False)

    return fail


def _report(item: pytest.Item, when: Any, act: Callable[[], None]) -> pytest.TestReport:
    call = pytest.CallInfo.from_call(act, when=when)
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    return report
