"""``python -m qmem.integrations.pytest_plugin.child REQUEST``: one marked test, measured, in this process.

It runs pytest with the parent's options on that test, and writes each report as a line of JSON.  What the test
allocates is read from torch's counters; the allocator's history is kept, so that what held the memory can be named.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from qmem.errors import QmemError, UnavailableError
from qmem.integrations.pytest_plugin import CHILD
from qmem.integrations.pytest_plugin.budgeted import Holding, Measured
from qmem.snapshot.answer import When
from qmem.units import format_bytes

HOLDINGS = 3
"""Of the holdings at the peak that many are named."""


class Answers:
    """The lines that go back to the parent."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115 - it is open to the very end

    def put(self, kind: str, content: Any) -> None:
        """Write one line, so that it is there whatever happens next."""
        self._file.write(json.dumps([kind, content], default=str) + "\n")


class PeakMemory:
    """The most that this process has allocated on a device, although torch's own peak may be reset meanwhile.

    Attributes:
        simulated: what the simulated device is called; empty for a real one.
    """

    def __init__(self, simulated: str, verdict: Any = None) -> None:
        import torch  # noqa: PLC0415

        self.simulated, self._verdict = simulated, verdict
        self._memory: Any = torch.cuda.memory
        self._before_resets = 0
        self._follow_resets(torch._C)  # noqa: SLF001
        self._memory._record_memory_history(context="alloc", stacks="python")  # noqa: SLF001 - torch has no other name

    def _follow_resets(self, bindings: Any) -> None:
        reset = bindings._cuda_resetPeakMemoryStats  # noqa: SLF001

        def note_and_reset(device: int) -> None:
            self._before_resets = self.n_bytes
            reset(device)

        bindings._cuda_resetPeakMemoryStats = note_and_reset  # noqa: SLF001

    @property
    def device(self) -> str:
        """As CUDA calls it."""
        import torch  # noqa: PLC0415

        return torch.cuda.get_device_name()

    @property
    def n_bytes(self) -> int:
        """Of the device that had most."""
        import torch  # noqa: PLC0415

        peaks = [self._memory.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
        return max(self._before_resets, *map(int, peaks))

    def doubts(self) -> Iterator[str]:
        """What the guard of a simulated device says of values that were read back."""
        tainting = self._verdict.tainting if self._verdict is not None else ()
        for read in tainting[:1]:
            yield (
                f"simulated on {self.simulated} and tainted: {len(tainting)} values were read that no kernel computed, "
                f"the first at {read.line}"
            )

    def holdings(self) -> tuple[Holding, ...]:
        """Who held most of it, by line of Python, or where memory ended; nobody, where nothing was allocated."""
        from qmem.snapshot import examine, read_snapshot  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "snapshot.pickle"))
            self._memory._dump_snapshot(path)  # noqa: SLF001
            snapshot = read_snapshot(path)
        if not snapshot.segments and not any(snapshot.device_traces):
            return ()
        answer = examine(snapshot)
        moment: When = "out of memory" if answer.shortage else "peak"
        uses = [(holder.uses[moment], holder.where) for holder in answer.holders if moment in holder.uses]
        largest = sorted(uses, key=lambda pair: -pair[0].n_bytes)[:HOLDINGS]
        return tuple(Holding(where, use.n_bytes, use.count) for use, where in largest)


class ChildPlugin:
    """Measures the test against its limit, and sends its reports, its warnings and what was measured."""

    def __init__(self, answers: Answers, limit: int, memory: PeakMemory, *, names_holdings: bool) -> None:
        self.answers, self.limit, self.memory = answers, limit, memory
        self.names_holdings = names_holdings
        self.measured: Measured | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The memory of fixtures counts too."""
        __tracebackhide__ = True
        with self._watching(item, "setup"):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Over the limit, a test that passes by itself fails."""
        __tracebackhide__ = True
        with self._watching(item, "call"):
            result = yield
        self.measured = self._measure(ran_out=False)
        self._hold(self.measured)
        return result

    @contextmanager
    def _watching(self, item: pytest.Item, when: str) -> Iterator[None]:
        """Out of memory, a test says what held it."""
        from qmem.profiler.out_of_memory import is_out_of_memory  # noqa: PLC0415

        __tracebackhide__ = True
        try:
            yield
        except Exception as error:
            leave_out_guard(error)
            self.measured = self._measure(ran_out=is_out_of_memory(error))
            if self.measured.ran_out and self.measured.holdings:
                item.add_report_section(when, "qmem", self._held(self.measured))
            raise

    def _measure(self, *, ran_out: bool) -> Measured:
        peak = self.memory.n_bytes
        return Measured(
            device=self.memory.device,
            simulated=bool(self.memory.simulated),
            peak=peak,
            ran_out=ran_out,
            holdings=self.memory.holdings() if self.names_holdings or ran_out or peak > self.limit else (),
        )

    def _hold(self, measured: Measured) -> None:
        if measured.peak > self.limit:
            pytest.fail(f"{self._over(measured)}\n{self._held(measured)}", pytrace=False)

    def _over(self, measured: Measured) -> str:
        limit, found, above = map(format_bytes, (self.limit, measured.peak, measured.peak - self.limit))
        where = f"simulated: {self.memory.simulated}" if measured.simulated else "torch.cuda.max_memory_allocated"
        return f"qmem_budget: the limit is {limit}; {found} were allocated at the peak, {above} more ({where})"

    def _held(self, measured: Measured) -> str:
        return "\n".join(("largest at the peak:", *(f"  {holding}" for holding in measured.holdings)))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Doubts are told when nothing of the test is left to run."""
        result = yield
        for doubt in self.memory.doubts():
            item.warn(pytest.PytestWarning(doubt))
        return result

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, when: str) -> None:
        """Sends a warning of the test; what collecting it warns of, the parent has seen itself."""
        if when == "runtest":
            category = warning_message.category
            told = {"module": category.__module__, "name": category.__qualname__, "text": str(warning_message.message)}
            self.answers.put("warning", {**told, "file": warning_message.filename, "line": warning_message.lineno})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test that cannot be collected here, though it could above."""
        if report.failed:
            self.answers.put("refused", f"could not collect it:\n{report.longreprtext}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Sends a report as it is made; pytest fails the test of a failed subtest where a terminal asks for both."""
        self.config.hook.pytest_report_teststatus(report=report, config=self.config)
        self.answers.put("report", self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    def pytest_configure(self, config: pytest.Config) -> None:
        """Remembers whose hooks know how a report is sent."""
        self.config = config

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """An interrupt, or ``pytest.exit``, is for the whole session."""
        stopped = excinfo.value
        code = getattr(stopped, "returncode", None)
        self.answers.put("interrupted", (type(stopped).__name__, getattr(stopped, "msg", str(stopped)), code))

    def pytest_sessionfinish(self) -> None:
        """Whatever happens from here on, the test has ended."""
        measured = self.measured or self._measure(ran_out=False)
        doubts = "; ".join(self.memory.doubts())
        self.answers.put("measured", msgspec.to_builtins(structs.replace(measured, doubts=doubts)))
        self.answers.put("end", None)


def leave_out_guard(error: BaseException) -> None:
    """Take the readback guard's lines out of a traceback: every call of torch goes through them."""
    trace = error.__traceback__
    while trace is not None:
        while trace.tb_next is not None and trace.tb_next.tb_frame.f_globals.get("__package__") == "qmem.phantom":
            trace.tb_next = trace.tb_next.tb_next
        trace = trace.tb_next


def main(path: str) -> int:
    """Run the test of a request; the exit code is pytest's."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    sys.path[:] = request["sys_path"]
    answers = Answers(request["answers"])
    try:
        with _device(request["simulated"]) as memory:
            plugin = ChildPlugin(answers, request["limit"], memory, names_holdings=request["names_holdings"])
            return _run_pytest(request, plugin)
    except QmemError as error:
        answers.put("unavailable", {"message": error.message, "hint": error.hint})
        return error.exit_code


def _run_pytest(request: dict[str, Any], plugin: ChildPlugin) -> int:
    arguments = ["-p", "no:terminal", request["test"]]
    config = pytest.Config.fromdictargs(request["options"], arguments)
    config.pluginmanager.register(plugin, CHILD)
    return int(config.hook.pytest_cmdline_main(config=config))


@contextmanager
def _device(simulated: str) -> Iterator[PeakMemory]:
    """The memory of torch's device; a simulated one is guarded, also where the parent was started on it.

    Raises:
        UnavailableError: there is no torch, or no device.
    """
    from qmem.phantom import is_loaded  # noqa: PLC0415

    try:
        import torch  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(f"torch cannot be imported: {error}", hint="install its CUDA build") from error
    if not torch.cuda.is_available():
        raise UnavailableError(
            "this machine has no GPU that CUDA can use", hint='name one to simulate: device="a100-80"'
        )
    if not is_loaded():
        yield PeakMemory("")
        return
    from qmem.phantom import guard  # noqa: PLC0415

    with guard.watching() as verdict:
        yield PeakMemory(simulated or torch.cuda.get_device_name(), verdict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
