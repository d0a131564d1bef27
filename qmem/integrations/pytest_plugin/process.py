"""The process of a marked test: what it is asked, how it is started, and what it answers.

It owns the request and the reading of the answers; what the parent makes of them is ``budget.py``'s.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import pytest

from qmem.errors import UnavailableError
from qmem.integrations.pytest_plugin.budgeted import Measured

LAST_LINES = 5
"""How much of what a crashed process printed is shown."""

ALONE: dict[str, Any] = {
    # The parent has chosen the test, counts failures, writes the reports, and spreads the work.
    "collectonly": False, "keyword": "", "markexpr": "", "deselect": None, "lf": False, "failedfirst": False,
    "newfirst": False, "stepwise": False, "stepwise_skip": False, "cacheclear": False, "maxfail": 0, "xmlpath": None,
    "usepdb": False, "numprocesses": None, "dist": "no", "tx": [], "looponfail": False, "qmem_report": None,
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


class Answers(NamedTuple):
    """What came back from a test's process.

    Attributes:
        reports: of the phases of the test.
        warnings: those that it raised, as their class in words, their text and their place.
        measured: absent where the process died.
        interruption: what pytest was stopped by there: class, message, exit code; empty where it was not.
        death: how the process ended, if badly.
    """

    reports: list[pytest.TestReport]
    warnings: list[dict[str, Any]]
    measured: Measured | None = None
    interruption: tuple[str, str, int | None] | tuple[()] = ()
    death: str = ""


def run(item: pytest.Item, budget: Budget) -> Answers:
    """Run a test in a process of its own.

    Raises:
        UnavailableError: the process has no torch, or no device.
    """
    config = item.config
    with tempfile.TemporaryDirectory(prefix="qmem-") as folder, tempfile.TemporaryFile() as log:
        request, answers = Path(folder, "request.json"), Path(folder, "answers")
        request.write_text(json.dumps(_request(item, budget, answers)))
        answers.touch()
        code = _call(request, budget, None if config.getoption("capture", "fd") == "no" else log)
        return _answers(config, answers, code, log)


def _call(request: Path, budget: Budget, log: IO[bytes] | None) -> int:
    """The exit code; with a log, what the process prints past pytest's capture goes there."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - -W, -X, -O
    command = [sys.executable, *flags, "-m", "qmem.integrations.pytest_plugin.child", str(request)]
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
        "names_holdings": bool(config.getoption("qmem_report")),
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


def _answers(config: pytest.Config, path: Path, code: int, log: IO[bytes]) -> Answers:
    answers, ended = Answers([], []), False
    for kind, content in _lines(path):
        if kind == "unavailable":
            raise UnavailableError(content["message"], hint=content["hint"])
        if kind == "refused":
            return answers._replace(death=content)
        ended = ended or kind == "end"
        answers = _with(answers, config, kind, content)
    return answers if ended else answers._replace(death=_death(code, log))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """What was written; of a process that was killed the last line may be half of one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            kind, content = json.loads(line)
        except json.JSONDecodeError:
            return
        yield kind, content


def _with(answers: Answers, config: pytest.Config, kind: str, content: Any) -> Answers:
    if kind == "report":
        answers.reports.append(_read_report(config, content))
    elif kind == "warning":
        answers.warnings.append(content)
    elif kind == "measured":
        return answers._replace(measured=msgspec.convert(content, Measured))
    elif kind == "interrupted":
        return answers._replace(interruption=tuple(content))
    return answers


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
