"""The parent's side of a marked test: its process, its reports, and what is said where it cannot run.

One process can have one phantom, and this one may have imported torch already; so a marked test never runs here.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from qmem.errors import QmemError, UnavailableError, UsageError
from qmem.units import format_bytes, parse_bytes

LAST_LINES = 5
"""How much of what a crashed process printed is shown."""

ALONE: dict[str, Any] = {
    # The parent has chosen the test, counts failures, writes the reports, and spreads the work.
    "collectonly": False, "keyword": "", "markexpr": "", "deselect": None, "lf": False, "failedfirst": False,
    "newfirst": False, "stepwise": False, "stepwise_skip": False, "cacheclear": False, "maxfail": 0, "xmlpath": None,
    "usepdb": False, "trace": False, "numprocesses": None, "dist": "no", "tx": [], "looponfail": False,
    "qmem_report": None,
    # Times of a single test in a process that records every allocation are none; coverage would erase the parent's.
    "benchmark_disable": True, "benchmark_only": False, "benchmark_skip": False, "benchmark_save": None,
    "benchmark_autosave": None, "benchmark_json": None, "benchmark_compare": None, "benchmark_compare_fail": None,
    "no_cov": True, "cov_source": [],
}  # fmt: skip


class Budget(NamedTuple):
    """What a mark asks for.

    Attributes:
        limit: bytes.
        simulated: what the simulated device is called; empty for the real one.
        environment: what gives a process that device.
    """

    limit: int
    simulated: str
    environment: dict[str, str]


class Outcome(NamedTuple):
    """What came back from a test's process: its reports, what it says of the device, and how it ended if badly."""

    reports: list[pytest.TestReport]
    notes: list[str]
    death: str


def run_alone(item: pytest.Item, mark: pytest.Mark, nextitem: pytest.Item | None) -> None:
    """Run a marked test in its own process and report it as if it had run here."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item, mark):
        hook.pytest_runtest_logreport(report=report)
    # What other tests have set up here and the next one does not need; the hook would miss its setup of this test.
    shared = item.session._setupstate  # noqa: SLF001
    hook.pytest_runtest_logreport(report=_report(item, "teardown", lambda: shared.teardown_exact(nextitem)))
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _reports(item: pytest.Item, mark: pytest.Mark) -> Iterator[pytest.TestReport]:
    """Those of the test's process, or one that says why there is none.

    A good teardown there is left out: this process has one too, of the fixtures that it shares with other tests.
    """
    outcome = _run_or_error(item, mark)
    if isinstance(outcome, QmemError):
        yield _report(item, "setup", _refusal(item, outcome))
        return
    yield from (report for report in outcome.reports if report.when != "teardown" or report.failed)
    if outcome.death:
        when = "call" if any(report.when == "setup" for report in outcome.reports) else "setup"
        yield _report(item, when, _fails(f"qmem_budget: the process of this test {outcome.death}"))
    for note in outcome.notes:
        item.warn(pytest.PytestWarning(note))


def _run_or_error(item: pytest.Item, mark: pytest.Mark) -> Outcome | QmemError:
    try:
        return _run(item, budget_of(mark))
    except QmemError as error:
        return error


def budget_of(mark: pytest.Mark) -> Budget:
    """What the arguments of a mark mean.

    Raises:
        UsageError: an argument is missing, unknown or wrong.
        UnavailableError: the device cannot be simulated here, or there is no torch.
    """
    amount, device, beside_driver = _arguments(mark)
    if not isinstance(amount, (str, int)) or isinstance(amount, bool):
        raise UsageError(f"not an amount of memory: {amount!r}", hint='write for example "11.5 GiB"')
    limit = parse_bytes(amount) if isinstance(amount, str) else amount
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


def _arguments(mark: pytest.Mark) -> tuple[Any, Any, bool]:
    def arguments(amount: Any, device: Any = None, *, beside_driver: bool = False) -> tuple[Any, Any, bool]:
        return amount, device, beside_driver

    try:
        return arguments(*mark.args, **mark.kwargs)
    except TypeError as error:
        wrong = str(error).rpartition("arguments() ")[2]
        raise UsageError(f"the mark {wrong}", hint='write qmem_budget("11.5 GiB", device="rtx-4090")') from error


def _refusal(item: pytest.Item, error: QmemError) -> Callable[[], None]:
    if not isinstance(error, UnavailableError):
        return _fails(f"qmem_budget: {error}")
    if not item.config.getoption("qmem_skip_unavailable"):
        return _fails(f"qmem_budget cannot measure here: {error} (--qmem-skip-unavailable skips such tests)")

    def skip() -> None:
        pytest.skip(f"qmem_budget cannot measure here: {error}")

    return skip


def _fails(text: str) -> Callable[[], None]:
    def fail() -> None:
        pytest.fail(text, pytrace=False)

    return fail


def _report(item: pytest.Item, when: Any, act: Callable[[], None]) -> pytest.TestReport:
    call = pytest.CallInfo.from_call(act, when=when)
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    return report


def _run(item: pytest.Item, budget: Budget) -> Outcome:
    config = item.config
    with tempfile.TemporaryDirectory(prefix="qmem-") as folder, tempfile.TemporaryFile() as log:
        request, answers = Path(folder, "request.json"), Path(folder, "answers")
        request.write_text(json.dumps(_request(item, budget, answers)))
        answers.touch()
        code = _call(request, budget, None if config.getoption("capture", "fd") == "no" else log)
        return _outcome(config, answers, code, log)


def _call(request: Path, budget: Budget, log: IO[bytes] | None) -> int:
    """The exit code; with a log, what the process prints past pytest's capture goes there."""
    command = [sys.executable, "-m", "qmem.integrations.pytest_plugin.child", str(request)]
    environment = {**os.environ, **budget.environment}
    return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode  # noqa: S603


def _request(item: pytest.Item, budget: Budget, answers: Path) -> dict[str, Any]:
    config = item.config
    options = {name: _plain(value) for name, value in vars(config.option).items() if _is_plain(value)}
    place = {"rootdir": str(config.rootpath), "inifilename": str(config.inipath) if config.inipath else None}
    if options.get("basetemp"):
        temporary = Path(options["basetemp"])
        temporary.mkdir(parents=True, exist_ok=True)
        place["basetemp"] = str(temporary / answers.parent.name)
    options.pop("file_or_dir", None)
    return {
        "test": f"{item.path}::{item.nodeid.partition('::')[2]}",
        "options": {**options, **ALONE, **place},
        "sys_path": sys.path,
        "limit": budget.limit,
        "simulated": budget.simulated,
        "answers": str(answers),
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or isinstance(value, (str, int, float, bool, os.PathLike))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _outcome(config: pytest.Config, answers: Path, code: int, log: IO[bytes]) -> Outcome:
    outcome, ended = Outcome([], [], ""), False
    for line in answers.read_text(encoding="utf-8").splitlines():
        kind, content = json.loads(line)
        if kind == "report":
            outcome.reports.append(_read_report(config, content))
        elif kind == "unavailable":
            raise UnavailableError(content["message"], hint=content["hint"])
        elif kind == "note":
            outcome.notes.append(content)
        elif kind == "refused":
            return outcome._replace(death=content)
        ended = ended or kind == "end"
    return outcome if ended else outcome._replace(death=_death(code, log))


def _read_report(config: pytest.Config, content: dict[str, Any]) -> pytest.TestReport:
    """JSON has made lists of the tuples, such as where and why a test was skipped."""
    for name in ("longrepr", "location"):
        if isinstance(content[name], list):
            content[name] = tuple(content[name])
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=content)
    return report


def _death(code: int, log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.rstrip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    last = "".join(f"\n  {line}" for line in _last(lines))
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended early, with exit code {code}"
    return f"{how}; its last words:{last}" if last else how


def _last(lines: list[str]) -> list[str]:
    """The last lines; of a crash those that pytest's faulthandler begins with, where the innermost call stands."""
    crash = next((index for index, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    return lines[-LAST_LINES:] if crash is None else lines[crash : crash + LAST_LINES]
