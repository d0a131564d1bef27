"""The pytest plugin, through runs of pytest in processes of their own."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from textwrap import dedent
from xml.etree import ElementTree as ET

import pytest

import qmem
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


def read_xml(path):
    return ET.fromstring(Path(path).read_text())  # noqa: S314 - this very test has made it


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


MARKED = """
    import os
    import pytest
    import torch

    @pytest.fixture(scope="module")
    def shared():
        yield os.getpid()

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

    @pytest.mark.xfail(strict=True)
    @pytest.mark.qmem_budget(1000, device="l4")
    def test_expected_to_be_over():
        torch.empty(1001, device="cuda")

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_dies():
        os.abort()
"""

CAME_BACK = (
    "test_fits[a::b [c]]",
    "qmem_budget: the limit is 1.00 GiB; 3.00 GiB were allocated at the peak, 2.00 GiB more (simulated: NVIDIA A100",
    "largest at the peak:\n  3.00 GiB in 3: ",
    "on NVIDIA A100-SXM4-80GB (phantom)",
    "OutOfMemoryError: CUDA out of memory",
    "largest at the peak:\n  9.00 GiB in 1: ",
    "test_ends_out_of_memory\n",
    "qmem_budget: the process of this test was killed by SIGABRT; its last words:\n  Fatal Python error: Aborted",
    " in test_dies",
)


@needs_the_phantom
@pytest.mark.libraries
def test_a_marked_test_runs_on_its_device_and_comes_back_as_if_it_had_run_here(run, pytester):
    pytester.makeconftest('import os\nos.environ.setdefault("ABOVE", str(os.getpid()))')
    pytester.makepyfile(test_next="def test_after_another_module(): pass")
    done = run(MARKED, "--junitxml=junit.xml", "--basetemp=temp", "-k", "test_", "-rA", "--qmem-report=report.json")
    done.assert_outcomes(passed=3, failed=3, xfailed=1)
    text = done.stdout.str()
    for line in CAME_BACK:
        assert line in text
    assert "guard.py" not in text
    cases = {case.get("name"): [node.tag for node in case] for case in read_xml("junit.xml").iter("testcase")}
    assert len(cases) == 7
    assert cases["test_fits[a::b [c]]"] == []
    assert cases["test_dies"] == ["failure"]
    assert cases["test_expected_to_be_over"] == ["skipped"]
    check_budgets(json.loads((pytester.path / "report.json").read_text()))


def check_budgets(report):
    budgets = {one["test"].partition("::")[2]: one for one in report["budgets"]}
    said = {name: (one["outcome"], one["result"], one["limit"], one["peak"]) for name, one in budgets.items()}
    gib = 2**30
    assert said == {
        "test_fits[a::b [c]]": ("within budget", "passed", gib, gib),
        "TestOver::test_over": ("over budget", "failed", gib, 3 * gib + 2**20),
        "test_ends_out_of_memory": ("out of memory", "failed", 15 * gib, 9 * gib),
        "test_expected_to_be_over": ("over budget", "xfailed", 1000, 4096),
        "test_dies": ("not measured", "failed", gib, None),
    }
    assert report["failing"] == [f"test_it.py::{name}" for name, one in said.items() if one[1] == "failed"]
    over = budgets["TestOver::test_over"]
    assert (over["device"], over["simulated"]) == ("NVIDIA A100-SXM4-80GB (phantom)", True)
    assert [holding["n_bytes"] for holding in over["holdings"]] == [3 * gib, 2**20]
    assert "killed by SIGABRT" in budgets["test_dies"]["why"]


SPREAD = """
    import warnings
    import pytest
    import torch

    @pytest.fixture
    def broken():
        raise RuntimeError("the fixture broke")

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_skips():
        pytest.skip("not today")

    @pytest.mark.qmem_budget("1 GiB", device="h100")
    def test_fails():
        print("seen on the way")
        assert torch.cuda.get_device_name() == "another card"

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_errs(broken):
        pass

    @pytest.mark.qmem_budget("1 GiB", device="t4")
    def test_reads_what_was_never_computed():
        warnings.warn("the old way", DeprecationWarning)
        torch.ones(10**6, device="cuda").sum().item()
"""


@needs_the_phantom
@pytest.mark.libraries
def test_marked_tests_are_spread_by_xdist(run):
    done = run(SPREAD, "-n2", "-rs", "--qmem-report=report.xml")
    done.assert_outcomes(passed=1, failed=1, skipped=1, errors=1, warnings=2)
    text = done.stdout.str()
    assert "(phantom)' == 'another card'" in text
    assert "not today" in text
    assert "seen on the way" in text
    assert "RuntimeError: the fixture broke" in text
    assert "simulated on Tesla T4 (phantom) and tainted: 1 values were read that no kernel computed" in text
    assert " in test_reads_what_was_never_computed" in text
    assert "DeprecationWarning: the old way" in text
    suite = read_xml("report.xml").find("testsuite[@name='qmem budgets']")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip
    cases = {case.get("name").partition("::")[2]: case[0] for case in suite}
    assert {name: (node.tag, node.get("type")) for name, node in cases.items()} == {
        "test_skips": ("skipped", "not measured"),
        "test_fails": ("failure", "within budget"),
        "test_errs": ("error", "not measured"),
        "test_reads_what_was_never_computed": ("system-out", None),
    }
    assert "4,001,792 of 1,073,741,824 B on Tesla T4 (phantom)" in cases["test_reads_what_was_never_computed"].text


STRICT = """
    import warnings
    import pytest
    import torch

    @pytest.mark.qmem_budget("1 GiB", device="t4")
    @pytest.mark.filterwarnings("ignore:not this one")
    def test_strict():
        warnings.warn("not this one")
        torch.ones(10**6, device="cuda").sum().item()
        warnings.warn("the old way", DeprecationWarning)
"""


@needs_the_phantom
@pytest.mark.libraries
def test_a_warning_is_an_error_in_a_marked_test_where_it_is_one_in_any_other(run):
    done = run(STRICT, "-Werror")
    done.assert_outcomes(failed=1, errors=1)
    done.stdout.fnmatch_lines(["*>*the old way*", "E * DeprecationWarning: the old way"])
    done.stdout.fnmatch_lines(["ERROR test_it.py::test_strict - pytest.PytestWarning: simulated on Tesla T4*"])


ENDS = """
    import pytest

    @pytest.fixture
    def broken():
        yield
        raise RuntimeError("the teardown broke")

    @pytest.mark.qmem_budget("1 GiB", device="t4")
    def test_breaks_at_its_end(broken, record_property, subtests):
        record_property("loss", 0.5)
        print("seen on the way")
        for number in range(2):
            with subtests.test(number=number):
                assert number != 1

    @pytest.mark.qmem_budget("1 GiB", device="t4")
    def test_interrupted():
        raise KeyboardInterrupt

    def test_after(): pass
"""


@needs_the_phantom
@pytest.mark.libraries
@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_ends_of_all_kinds_come_back(run):
    done = run(ENDS, "--junitxml=junit.xml", "-ojunit_logging=system-out", "--pdb")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    text = done.stdout.str()
    assert "KeyboardInterrupt" in text
    assert "contains 1 failed subtest" in text
    assert "--pdb does not reach the process of this test; breakpoint() does with -s" in text
    call, teardown, _ = read_xml("junit.xml").iter("testcase")
    assert [node.tag for node in call] == ["properties", "failure", "failure"]
    assert [node.tag for node in teardown] == ["properties", "error", "system-out"]
    assert "the teardown broke" in teardown.find("error").text
    assert "seen on the way" in teardown.find("system-out").text


ALARMED = """
    import time
    import pytest

    @pytest.mark.qmem_budget("1 GiB", device="t4")
    def test_takes_long(): time.sleep(60)

    def test_after(): pass
"""


@needs_the_phantom
def test_a_time_limit_of_this_process_ends_that_of_the_test(run, pytester):
    pytester.makeconftest("""
        import signal
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(item):
            signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it took too long"))
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            try:
                return (yield)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    """)
    done = run(ALARMED)
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["qmem_budget: the process of this test was ended from here: it took too long"])


WRONG = """
    import pytest

    @pytest.mark.qmem_budget("a lot", device="l4")
    def test_amount(): pass

    @pytest.mark.qmem_budget(True)
    def test_truth(): pass

    @pytest.mark.qmem_budget(device="l4")
    def test_none(): pass

    @pytest.mark.qmem_budget("1 GiB", card="l4")
    def test_card(): pass

    @pytest.mark.qmem_budget("1 GiB", device="rtx-4091")
    def test_device(): pass

    @pytest.mark.qmem_budget("1 GiB", device="mi300x")
    def test_maker(): pass

    @pytest.mark.qmem_budget("30 GiB", device="l4")
    def test_never_exceeded(): pass

    @pytest.mark.qmem_budget(-1, device="l4")
    def test_below_nothing(): pass

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    @pytest.mark.qmem_budget("1 GiB", device="a100-80")
    def test_two_marks(): pass
"""


def test_a_mark_that_is_wrong_is_an_error_of_its_test_in_one_line(run):
    done = run(WRONG, "--qmem-report=report.md")
    done.assert_outcomes(errors=9)
    text = done.stdout.str()
    for message in (
        "qmem_budget: not an amount of memory: 'a lot'; write for example 24GiB, 24GB or 512MiB",
        "qmem_budget: not an amount of memory: True",
        "qmem_budget: the mark missing 1 required positional argument: 'amount'; write qmem_budget(",
        "qmem_budget: the mark got an unexpected keyword argument 'card'",
        "qmem_budget: no GPU is called 'rtx-4091'; nearest: ",
        "qmem_budget: AMD Instinct MI300X cannot be simulated",
        "qmem_budget: the budget of 30.00 GiB is more than NVIDIA L4 has, 21.99 GiB",
        "qmem_budget: not an amount of memory: -1; write for example",
        "qmem_budget: this test has 2 marks of its own, and only one could hold; give each case its own: pytest.param(",
    ):
        assert message in text
    assert "Traceback" not in text
    page = Path("report.md").read_text()
    assert page.startswith("<!-- qmem:report -->\n\n### qmem budgets: 9 of 9 tests failed\n")
    assert page.count("| wrong | error |") == 9
    run(WRONG, "--trace", "-k", "below").stdout.fnmatch_lines(["qmem_budget: --trace reaches * add -s"])


WITHOUT_DEVICE = """
    import pytest

    @pytest.mark.qmem_budget("1 GiB")
    def test_on_the_real_gpu(): pass
"""


@pytest.mark.libraries
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_what_cannot_be_measured_here_is_an_error_or_skipped_if_that_is_asked_for(run):
    done = run(WITHOUT_DEVICE)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(
        ["qmem_budget cannot measure here: this machine has no GPU that CUDA can use; name one *"]
    )
    run(WITHOUT_DEVICE, "--qmem-skip-unavailable").assert_outcomes(skipped=1)


def test_without_the_plugin_a_marked_test_runs_as_any_other(run):
    source = """
        import os, sys, pytest

        @pytest.mark.qmem_budget("1 GiB", device="l4")
        def test_it():
            assert not [name for name in sys.modules if name.startswith("qmem")]
    """
    done = run(source, "-p", "no:qmem")
    done.assert_outcomes(passed=1, warnings=1)
    done.stdout.fnmatch_lines(["*PytestUnknownMarkWarning: Unknown pytest.mark.qmem_budget*"])


@pytest.fixture
def packages_without_torch(tmp_path):
    """Links to all packages that are installed here, but to torch."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for place in Path(sysconfig.get_path("purelib")).iterdir():
        if not place.name.startswith("torch"):
            (folder / place.name).symlink_to(place)
    if not (folder / "qmem").exists():  # it is installed editable
        (folder / "qmem").symlink_to(Path(qmem.__file__).parent)
    return folder


def test_without_torch_a_marked_test_says_what_is_missing_and_the_rest_runs(packages_without_torch, pytester):
    pytester.makepyfile(
        test_it="""
        import pytest
        from qmem import Job, estimate

        def test_estimates(qmem_check):
            with pytest.raises(pytest.fail.Exception, match="no baseline"):
                qmem_check(estimate(Job(model="Qwen/Qwen2.5-0.5B", seq=256)))

        @pytest.mark.qmem_budget("1 GiB", device="l4")
        def test_simulated(): pass

        @pytest.mark.qmem_budget("1 GiB")
        def test_real(): pass
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(packages_without_torch)}
    words = [sys.executable, "-S", "-m", "pytest"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "1 passed, 2 errors" in done.stdout
    assert "qmem_budget cannot measure here: torch is not installed; the phantom GPU runs its CUDA build" in done.stdout
    assert "qmem_budget cannot measure here: torch cannot be imported: No module named 'torch'" in done.stdout


CHECKED = """
    from qmem import Job, estimate

    BATCH = 3

    def test_step(qmem_check):
        qmem_check(estimate(Job(model="Qwen/Qwen2.5-0.5B", seq=256, batch=BATCH)), budget="8 GiB")
"""


@pytest.fixture
def batch_of(pytester):
    """Changes the batch of the test."""

    def change(batch):
        path = pytester.path / "test_it.py"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(f"BATCH = {batch}" if line.startswith("BATCH") else line for line in lines))

    return change


def test_a_ledger_is_held_against_its_baseline_which_only_an_update_stores(run, pytester, batch_of):
    done = run(CHECKED)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ['qmem_check: no baseline: there is no baseline: pytest "test_it.py::test_step" --qmem-update']
    )
    assert not (pytester.path / "profiles").exists()
    run("", "--qmem-update").assert_outcomes(passed=1)
    stored = pytester.path / "profiles" / "baselines" / "test_it.py-test_step.json"
    assert json.loads(stored.read_text())["passport"]["reason"] == "--qmem-update"
    run("").assert_outcomes(passed=1)
    batch_of(4)
    done = run("")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["qmem_check: grown: *", "  changed: batch 3 -> 4", "*by kind: *", "*logits and loss: *"])
    batch_of(2)
    done = run("")
    done.assert_outcomes(passed=1, warnings=1)
    done.stdout.fnmatch_lines(["*the baseline is stale, pytest *--qmem-update*"])


def test_a_budget_of_a_ledger_fails_although_nothing_grew(run):
    run(CHECKED, "--qmem-update").assert_outcomes(passed=1)
    done = run(CHECKED.replace("8 GiB", "1 GiB"))
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["qmem_check: over budget: peak allocated * is * over the budget of 1.00 GiB"])


def test_an_update_needs_a_committed_tree(run, pytester):
    pytester.makepyfile(test_it=CHECKED)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], check=True)
    run(CHECKED + "\n    CHANGED = True", "--qmem-update").stdout.fnmatch_lines(
        ["qmem_check: test_it.py is changed and not committed*; commit first, or add --qmem-allow-dirty"]
    )
    run("", "--qmem-update", "--qmem-allow-dirty").assert_outcomes(passed=1)


def test_an_update_stores_nothing_of_a_test_that_fails(run, pytester):
    run(f"{CHECKED}        assert not BATCH", "--qmem-update").assert_outcomes(failed=1)
    assert not (pytester.path / "profiles").exists()


def test_tests_whose_names_come_to_the_same_do_not_overwrite_each_other(run):
    for path in (Path("a/test_b.py"), Path("a-test_b.py")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(CHECKED))
    done = run("", "--qmem-update", "--import-mode=importlib", "a/test_b.py", "a-test_b.py")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        ["qmem_check: *a-test_b.py-test_step.json is the baseline of a/test_b.py::test_step, whose name comes to the *"]
    )


@pytest.mark.parametrize("arguments", [(), ("-n1",)], ids=["here", "xdist"])
def test_verdicts_are_written_to_a_file(run, pytester, arguments):
    run(CHECKED, "--qmem-report=report.json", *arguments)
    report = json.loads((pytester.path / "report.json").read_text())
    assert report["failing"] == ["test_it.py-test_step"]
    assert [verdict["outcome"] for verdict in report["verdicts"]] == ["no baseline"]


def test_the_form_of_a_report_follows_its_suffix(run, pytester):
    run(CHECKED, "--qmem-update", "--qmem-report=report.md")
    assert (pytester.path / "report.md").read_text().startswith("<!-- qmem:report -->")
    run("", "--qmem-report=report.xml")
    assert read_xml("report.xml").find("testsuite").get("tests") == "1"
    done = run("", "--qmem-report=report.txt")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*--qmem-report report.txt: name a file that ends in .json, .md, .xml*"])
    done = run("", "--qmem-report=missing/report.xml")
    done.stderr.fnmatch_lines(["*--qmem-report missing/report.xml: there is no folder *missing; make it*"])


def test_ledgers_of_one_test_are_told_apart_by_a_name(run):
    source = """
        import pytest
        from qmem import Job, estimate

        def test_two(qmem_check):
            ledger = estimate(Job(model="Qwen/Qwen2.5-0.5B", seq=256))
            qmem_check(ledger, name="one")
            qmem_check(ledger, name="two")
            with pytest.raises(pytest.fail.Exception, match="called twice in this test"):
                qmem_check(ledger, name="two")
            with pytest.raises(pytest.fail.Exception, match="str is or has no ledger"):
                qmem_check("ledger", name="three")
    """
    run(source, "--qmem-update").assert_outcomes(passed=1)


def test_two_tests_never_share_a_baseline():
    names = [baseline_name(f"a/test_b.py::test_c[{value}]") for value in ("x y", "x-y", "x/y", "x" * 300, "x" * 301)]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 200
    assert baseline_name("a/test_b.py::TestC::test_d") == "a-test_b.py-TestC-test_d"


WATCHED = """
    import pytest, torch, qmem

    @pytest.mark.qmem_budget("1 GiB", device="l4")
    def test_training(qmem_check, tmp_path):
        model = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, WIDTH)).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        with qmem.watch(model, optimizer, path=tmp_path / "ledger.json") as run:
            for _ in range(3):
                model(torch.zeros(64, 1024, device="cuda")).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        qmem_check(run)

    WIDTH = 1024
"""


@needs_the_phantom
@pytest.mark.libraries
def test_a_training_that_is_watched_in_a_marked_test_is_held_against_its_baseline(run, pytester):
    run(WATCHED, "--qmem-update").assert_outcomes(passed=1)
    done = run(WATCHED.replace("WIDTH = 1024", "WIDTH = 2048"), "--qmem-report=report.json")
    done.assert_outcomes(failed=1)
    (verdict,) = json.loads((pytester.path / "report.json").read_text())["verdicts"]
    assert verdict["outcome"] == "grown"
    assert verdict["simulated"] is True


BENCHMARK = """
    from qmem import Job

    BATCH = 2

    def test_step(qmem_benchmark):
        assert qmem_benchmark(sum, [1, 2]) == 3
        qmem_benchmark.estimate(Job(model="Qwen/Qwen2.5-0.5B", seq=256, batch=BATCH), gpu="l4")
"""


def test_the_memory_of_stored_benchmarks_is_compared(run, batch_of):
    run(BENCHMARK, "--benchmark-save=first", "--benchmark-max-time=0.01").assert_outcomes(passed=1)
    done = run("", "--benchmark-compare", "--benchmark-max-time=0.01")
    assert done.ret == 0
    assert "memory grew" not in done.stdout.str()
    batch_of(3)
    done = run("", "--benchmark-compare", "--benchmark-max-time=0.01")
    assert done.ret == 1
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(
        ["*qmem: memory grew since the stored benchmarks*", "test_it.py::test_step: estimated peak * GiB -> * GiB (+*"]
    )
    assert run("").ret == 0


@needs_the_phantom
@pytest.mark.libraries
def test_a_benchmark_on_a_device_keeps_its_peak(run, pytester, monkeypatch):
    from qmem.catalogue import find_gpu
    from qmem.phantom import describe

    for name, value in describe(find_gpu("l4")).environment().items():
        monkeypatch.setenv(name, value)
    source = """
        import torch

        def test_step(qmem_benchmark):
            qmem_benchmark(torch.empty, 2**20, device="cuda")
    """
    run(source, "--benchmark-json=stored.json", "--benchmark-max-time=0.01").assert_outcomes(passed=1)
    (benchmark,) = json.loads((pytester.path / "stored.json").read_text())["benchmarks"]
    assert benchmark["extra_info"]["qmem_peak_bytes"] >= 4 * 2**20
