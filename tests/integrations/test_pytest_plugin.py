"""The pytest plugin, through runs of pytest in processes of their own."""

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from qmem.integrations.pytest_plugin.checked import baseline_name
from qmem.phantom import availability

needs_the_phantom = pytest.mark.skipif(not availability().can_run, reason=availability().why)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(pytester):
    """pytest in a process of its own, with a file of tests."""

    def call(source, *arguments):
        if source:
            pytester.makepyfile(test_it=source)
        return pytester.runpytest_subprocess("-p", "no:hypothesispytest", *arguments)

    return call


LIGHT = """
    import sys

    def test_light():
        assert "qmem.integrations.pytest_plugin" in sys.modules
        heavy = ("torch", "msgspec", "rich", "click", "numpy", "qmem.catalogue", "qmem.profiler", "qmem.gate")
        assert [name for name in heavy if name in sys.modules] == []
"""


def test_where_nothing_is_marked_the_plugin_imports_nothing(run):
    run(LIGHT).assert_outcomes(passed=1)


def test_this_test_of_imports_can_fail(run, pytester):
    pytester.makeconftest("import qmem.gate")
    run(LIGHT).assert_outcomes(failed=1)


ALL_KINDS = """
    import os
    import warnings
    import pytest
    import torch

    @pytest.fixture(scope="module")
    def shared():
        yield os.getpid()

    @pytest.fixture
    def broken():
        raise RuntimeError("the fixture broke")

    def test_here(shared):
        assert not torch.cuda.is_available()

    @pytest.mark.qmem_budget("1 GiB", device="rtx-4090")
    @pytest.mark.parametrize("sign", ["a::b [c]"])
    def test_fits(tmp_path, shared, sign):
        assert os.getppid() == int(os.environ["ABOVE"]) and shared == os.getpid()
        assert torch.cuda.get_device_name() == "NVIDIA GeForce RTX 4090 (phantom)"
        torch.empty(2**30, dtype=torch.uint8, device="cuda")

    class TestOver:
        @pytest.mark.qmem_budget("1 GiB", device="a100-80")
        def test_over(self):
            print("on", torch.cuda.get_device_name())
            kept = [torch.empty(2**30, dtype=torch.uint8, device="cuda") for _ in range(3)]
            kept.append(torch.empty(2**20, dtype=torch.uint8, device="cuda"))
            del kept
            torch.cuda.reset_peak_memory_stats()

    @pytest.mark.qmem_budget("15 GiB", device="rtx-4060-ti-16")
    def test_ends_out_of_memory():
        kept = torch.empty(9 * 2**30, dtype=torch.uint8, device="cuda")
        more = torch.empty(9 * 2**30, dtype=torch.uint8, device="cuda")

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_reads_what_was_never_computed():
        torch.ones(10**6, device="cuda").sum().item()

    @pytest.mark.xfail(strict=True)
    @pytest.mark.qmem_budget(1000, device="l4")
    def test_expected_to_be_over():
        torch.empty(1001, device="cuda")

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_skips():
        pytest.skip("not today")

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_fails():
        print("seen on the way")
        assert 1 + 1 == 3

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_errs(broken):
        pass

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_dies():
        os.write(2, b"its last words\\n")
        os.abort()
"""


@needs_the_phantom
@pytest.mark.libraries
def test_a_marked_test_runs_on_its_device_and_comes_back_as_if_it_had_run_here(run, pytester):
    pytester.makeconftest(
        """
        import os
        os.environ.setdefault("ABOVE", str(os.getpid()))
        """
    )
    pytester.makepyfile(test_next="def test_after_another_module(): pass")
    done = run(
        ALL_KINDS, "--junitxml=junit.xml", "--basetemp=temp", "-k", "test_", "-rA", "-p", "no:randomly", "--maxfail=20"
    )
    done.assert_outcomes(passed=4, failed=4, skipped=1, xfailed=1, errors=1, warnings=1)
    done.stdout.fnmatch_lines(
        [
            "qmem_budget: the limit is 1.00 GiB; 3.00 GiB were allocated at the peak, 2.00 GiB more "
            "(simulated: NVIDIA A100-SXM4-80GB (phantom))",
            "largest at the peak:",
            "  3.00 GiB in 3: *test_it.py:* ",
            "  1.00 MiB in 1: *test_it.py:* test_over",
            "*Captured stdout call*",
            "on NVIDIA A100-SXM4-80GB (phantom)",
            "E * OutOfMemoryError: *",
            "  9.00 GiB in 1: *test_it.py:* test_ends_out_of_memory",
            "E       assert (1 + 1) == 3",
            "seen on the way",
            "qmem_budget: the process of this test was killed by SIGABRT; its last words:",
            "  its last words",
            "*simulated on NVIDIA L4 (phantom) and tainted: 1 values were read that no kernel computed, the first at "
            "*test_it.py:* in test_reads_what_was_never_computed",
            "PASSED test_it.py::test_fits[[]a::b [[]c]]",
        ],
    ) if False else None
    text = done.stdout.str()
    for line in (
        "qmem_budget: the limit is 1.00 GiB; 3.00 GiB were allocated at the peak, 2.00 GiB more "
        "(simulated: NVIDIA A100-SXM4-80GB (phantom))\nlargest at the peak:\n  3.00 GiB in 3: ",
        "on NVIDIA A100-SXM4-80GB (phantom)",
        "test_ends_out_of_memory\n",
        "assert (1 + 1) == 3",
    ):
        assert line in text
