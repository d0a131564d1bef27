"""``--qmem-report FILE``: the budgets of marked tests and the verdicts of ``qmem_check``, in one file.

The forms of verdicts are the gate's; this owns those of budgets, and the collecting of both in the session's process.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import msgspec
import pytest

from qmem.errors import QmemError
from qmem.gate import Verdict
from qmem.integrations.pytest_plugin import BUDGETED
from qmem.integrations.pytest_plugin.budgeted import Budgeted
from qmem.integrations.pytest_plugin.checked import GOOD
from qmem.profiler.storing import check_place
from qmem.report.gate_formats import MARKER, SCHEMA_VERSION, junit_document, junit_suite, plain, to_markdown, xml_text
from qmem.units import GIB


class Results(NamedTuple):
    """What a session found, in the order in which its tests ended."""

    verdicts: list[Verdict]
    budgets: list[Budgeted]

    @property
    def grown(self) -> list[str]:
        """The scenarios whose verdict fails a test."""
        return [verdict.scenario for verdict in self.verdicts if verdict.outcome not in GOOD]

    @property
    def failed(self) -> list[str]:
        """The budgeted tests that failed, for whichever reason."""
        return [budgeted.test for budgeted in self.budgets if budgeted.fails]


def as_json(results: Results) -> str:
    """Everything, in integer bytes."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "failing": [*results.grown, *results.failed],
        "verdicts": results.verdicts,
        "budgets": results.budgets,
    }
    return msgspec.json.encode(content).decode() + "\n"


def as_markdown(results: Results) -> str:
    """A comment of a pull request: the verdicts, then a table of the budgets and what was held where one failed."""
    parts = [to_markdown(results.verdicts, results.grown).rstrip()] if results.verdicts else [MARKER]
    if results.budgets or not results.verdicts:
        failing = f"{len(results.failed)} of {len(results.budgets)} tests failed"
        parts += [f"### qmem budgets: {failing if results.failed else 'all kept'}", _table(results.budgets)]
    parts += [_details(budgeted) for budgeted in results.budgets if budgeted.fails]
    return "\n\n".join(parts) + "\n"


def _table(budgets: Sequence[Budgeted]) -> str:
    names = "test | device | limit, GiB | peak, GiB | memory | result | largest at the peak"
    lines = [f"| {names} |", "|---|---|--:|--:|---|---|---|"]
    for one in budgets:
        device = one.device if not one.simulated else f"{one.device}, simulated"
        largest = str(one.holdings[0]) if one.holdings else ""
        cells = (one.test, device, _gib(one.limit), _gib(one.peak), one.outcome, one.result, largest)
        lines.append(f"| {' | '.join(map(plain, cells))} |")
    return "\n".join(lines)


def _details(one: Budgeted) -> str:
    head = f"**{plain(one.test)}**: {one.outcome}, {one.result}"
    return "\n".join((head, "", *(f"* {plain(line)}" for line in _lines(one))))


def _lines(one: Budgeted) -> Iterator[str]:
    if one.why:
        yield one.why
    yield from map(str, one.holdings)


def _gib(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / GIB:.3f}"


def as_junit(results: Results) -> str:
    """JUnit XML: a suite of the verdicts, and one of the budgets with their figures as properties."""
    return junit_document(junit_suite(results.verdicts, results.grown), _suite(results.budgets))


def _suite(budgets: Sequence[Budgeted]) -> ET.Element:
    counts = {tag: sum(_tag(one) == tag for one in budgets) for tag in ("failure", "error", "skipped")}
    attributes = {"failures": counts["failure"], "errors": counts["error"], "skipped": counts["skipped"], "time": 0}
    suite = ET.Element("testsuite", name="qmem budgets", tests=str(len(budgets)))
    suite.attrib.update({name: str(count) for name, count in attributes.items()})
    for one in budgets:
        suite.append(_case(one))
    return suite


def _case(one: Budgeted) -> ET.Element:
    case = ET.Element("testcase", classname="qmem.budget", name=xml_text(one.test), time="0")
    tag, text = _tag(one), xml_text("\n".join((_figures(one), *_lines(one))))
    if tag:
        node = ET.SubElement(case, tag, message=xml_text(one.why or _figures(one)), type=one.outcome)
        node.text = text
    else:
        ET.SubElement(case, "system-out").text = text
    return case


def _figures(one: Budgeted) -> str:
    """``within budget: 1,048,576 of 1,073,741,824 B on NVIDIA L4 (phantom)``."""
    if one.peak is None or one.limit is None:
        return one.outcome
    return f"{one.outcome}: {one.peak:,} of {one.limit:,} B on {one.device}"


def _tag(one: Budgeted) -> str:
    """JUnit's element for a result; a test that is expected to fail is one that was skipped, as pytest has it."""
    return {"failed": "failure", "error": "error", "skipped": "skipped", "xfailed": "skipped"}.get(one.result, "")


FORMS: dict[str, Callable[[Results], str]] = {".json": as_json, ".md": as_markdown, ".xml": as_junit}
"""By the suffix of the file."""


def place_of(config: pytest.Config) -> Path:
    """The file that ``--qmem-report`` names.

    Raises:
        pytest.UsageError: its form is not known, or it could not be written at the end.
    """
    given = config.getoption("qmem_report")
    path = Path(config.invocation_params.dir, given)
    if path.suffix not in FORMS:
        raise pytest.UsageError(f"--qmem-report {given}: name a file that ends in {', '.join(FORMS)}")
    try:
        check_place(path)
    except QmemError as error:
        raise pytest.UsageError(f"--qmem-report {given}: {error}") from error
    return path


class ReportWriter:
    """Collects what the tests of a session found, and writes it at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self._path = place_of(config)
        self._results = Results([], [])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes what a test's report carries, whichever process ran it."""
        for text in getattr(report, "qmem_verdicts", ()):
            self._results.verdicts.append(msgspec.json.decode(text, type=Verdict))
        if hasattr(report, BUDGETED):
            self._results.budgets.append(msgspec.json.decode(getattr(report, BUDGETED), type=Budgeted))

    def pytest_sessionfinish(self) -> None:
        """Writes the file, also where there is nothing to say: a runner expects it."""
        self._path.write_text(FORMS[self._path.suffix](self._results), encoding="utf-8")
