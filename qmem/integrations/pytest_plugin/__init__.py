"""The pytest plugin: the mark ``qmem_budget``, the fixtures ``qmem_check`` and ``qmem_benchmark``.

pytest loads this module in every run, so it imports nothing until a test uses one of them; ``-p no:qmem`` leaves it
out.  It owns pytest's hooks and options; what they do is in the modules beside it.
"""

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from qmem.integrations.pytest_plugin.benchmark import MeasuredBenchmark
    from qmem.integrations.pytest_plugin.checked import Checked

MARK = "qmem_budget"
CHILD = "qmem-child"
"""The plugin that is registered in the process of a marked test."""

MARKER = (
    f'{MARK}(amount, device=None, *, beside_driver=False): the most that the test may allocate, such as "11.5 GiB"; '
    "it runs in a process of its own, on a simulated device where one is named."
)
BUDGETED = "qmem_budgeted"
"""The attribute of a report with what came of its marked test, as JSON."""

VERDICTS = pytest.StashKey[list[str]]()
"""What ``qmem_check`` found in a test, as JSON; it travels with the test's report."""

PASSED = pytest.StashKey[bool]()
"""Whether a test's call has passed."""

STORED_RUNS = pytest.StashKey[list[dict[str, Any]]]()
"""Runs of pytest-benchmark that this one is compared with."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("qmem", "qmem: peak memory of trainings")
    group.addoption("--qmem-update", action="store_true", help="store what qmem_check measures as its baseline")
    group.addoption(
        "--qmem-allow-dirty", action="store_true", help="with --qmem-update: accept a tree that is not committed"
    )
    group.addoption(
        "--qmem-report",
        metavar="FILE",
        help="write all budgets and the verdicts of qmem_check to FILE: .json, .md or .xml (JUnit)",
    )
    group.addoption("--qmem-skip-unavailable", action="store_true", help="skip what cannot be measured on this machine")


def pytest_configure(config: pytest.Config) -> None:
    """Names the mark, and has results collected where a report was asked for; under xdist by the process above all."""
    config.addinivalue_line("markers", MARKER)
    if config.getoption("qmem_report") and not hasattr(config, "workerinput"):
        from qmem.integrations.pytest_plugin.reporting import ReportWriter  # noqa: PLC0415

        config.pluginmanager.register(ReportWriter(config), "qmem-report")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A marked test runs in a process of its own."""
    if item.get_closest_marker(MARK) is None or item.config.pluginmanager.has_plugin(CHILD):
        return None
    from qmem.integrations.pytest_plugin.budget import run_alone  # noqa: PLC0415

    run_alone(item, nextitem)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> "Generator[None, pytest.TestReport, pytest.TestReport]":
    """Gives the report what ``qmem_check`` found, so that it reaches the process that writes ``--qmem-report``."""
    report = yield
    if report.when == "call" and VERDICTS in item.stash:
        report.__dict__["qmem_verdicts"] = item.stash[VERDICTS]
        item.stash[PASSED] = report.passed
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(config: pytest.Config, compared_benchmark: dict[str, Any]) -> None:
    """Keeps a stored run of pytest-benchmark, which itself compares times alone."""
    config.stash.setdefault(STORED_RUNS, []).append(compared_benchmark)
    if not config.pluginmanager.has_plugin("qmem-benchmarks"):
        from qmem.integrations.pytest_plugin.benchmark import MemoryComparison  # noqa: PLC0415

        config.pluginmanager.register(MemoryComparison(config), "qmem-benchmarks")


@pytest.fixture
def qmem_check(request: pytest.FixtureRequest) -> "Generator[Checked, None, None]":
    """``qmem_check(ledger)`` compares what was measured in this test with the baseline that is stored of it."""
    from qmem.integrations.pytest_plugin.checked import Checked  # noqa: PLC0415

    checked = Checked(request.node)
    yield checked
    if request.node.stash.get(PASSED, False):
        checked.store()


@pytest.fixture
def qmem_benchmark(request: pytest.FixtureRequest) -> "MeasuredBenchmark":
    """``benchmark`` of pytest-benchmark, which keeps peak memory beside the time."""
    from qmem.integrations.pytest_plugin.benchmark import MeasuredBenchmark  # noqa: PLC0415

    return MeasuredBenchmark(request.getfixturevalue("benchmark"))
