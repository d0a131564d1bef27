"""``python -m qmem.integrations.pytest_plugin.child REQUEST``: one marked test, measured, in this process.

It runs pytest with the parent's options on that test, and writes each report as a line of JSON.  What the test
allocates is read from torch's counters; the allocator's history is kept, so that what held the memory can be named.
"""

import json
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from qmem.errors import QmemError, UnavailableError
from qmem.integrations.pytest_plugin import CHILD
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

    def __init__(self, simulated: str) -> None:
        import torch  # noqa: PLC0415

        self.simulated = simulated
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
    def n_bytes(self) -> int:
        """Of the device that had most."""
        import torch  # noqa: PLC0415

        peaks = [self._memory.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
        return max(self._before_resets, *map(int, peaks))

    def holdings(self) -> list[str]:
        """Who held most of it, by line of Python, a line each."""
        from qmem.snapshot import examine, read_snapshot  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "snapshot.pickle"))
            self._memory._dump_snapshot(path)  # noqa: SLF001
            answer = examine(read_snapshot(path))
        moment: When = "out of memory" if answer.shortage else "peak"
        uses = [(holder.uses[moment], holder.where) for holder in answer.holders if moment in holder.uses]
        largest = sorted(uses, key=lambda pair: -pair[0].n_bytes)[:HOLDINGS]
        return [f"  {format_bytes(use.n_bytes)} in {use.count}: {where}" for use, where in largest]


class ChildPlugin:
    """Measures the test against its limit and sends its reports."""

    def __init__(self, answers: Answers, limit: int, memory: PeakMemory) -> None:
        self.answers, self.limit, self.memory = answers, limit, memory

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Over the limit, a test that passes by itself fails; one that ran out of memory says what held it."""
        from qmem.profiler.out_of_memory import is_out_of_memory  # noqa: PLC0415

        try:
            result = yield
        except Exception as error:
            leave_out_guard(error)
            if is_out_of_memory(error):
                item.add_report_section("call", "qmem", "\n".join(self._held()))
            raise
        n_bytes = self.memory.n_bytes
        if n_bytes > self.limit:
            pytest.fail("\n".join((self._over(n_bytes), *self._held())), pytrace=False)
        return result

    def _over(self, n_bytes: int) -> str:
        limit, found, above = map(format_bytes, (self.limit, n_bytes, n_bytes - self.limit))
        where = f"simulated: {self.memory.simulated}" if self.memory.simulated else "torch.cuda.max_memory_allocated"
        return f"qmem_budget: the limit is {limit}; {found} were allocated at the peak, {above} more ({where})"

    def _held(self) -> list[str]:
        return ["largest at the peak:", *self.memory.holdings()]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test that cannot be collected here, though it could above."""
        if report.failed:
            self.answers.put("refused", f"could not collect it:\n{report.longreprtext}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Sends a report as it is made."""
        self.answers.put("report", self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    def pytest_configure(self, config: pytest.Config) -> None:
        """Remembers whose hooks know how a report is sent."""
        self.config = config

    def pytest_sessionfinish(self) -> None:
        """Whatever happens from here on, the test has ended."""
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
        with _device(request["simulated"], answers):
            plugin = ChildPlugin(answers, request["limit"], PeakMemory(request["simulated"]))
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
def _device(simulated: str, answers: Answers) -> Iterator[None]:
    """Torch with a device; on a simulated one with the guard, whose doubts are told at the end.

    Raises:
        UnavailableError: there is no torch, or no device.
    """
    try:
        import torch  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(f"torch cannot be imported: {error}", hint="install its CUDA build") from error
    if not torch.cuda.is_available():
        raise UnavailableError(
            "this machine has no GPU that CUDA can use", hint='name one to simulate: device="a100-80"'
        )
    with ExitStack() as stack:
        if simulated:
            from qmem.phantom import guard  # noqa: PLC0415

            verdict = stack.enter_context(guard.watching())
            stack.callback(lambda: _tell_doubts(simulated, verdict, answers))
        yield


def _tell_doubts(simulated: str, verdict: Any, answers: Answers) -> None:
    for read in verdict.tainting[:1]:
        answers.put(
            "note",
            f"simulated on {simulated} and tainted: {len(verdict.tainting)} values were read that no kernel computed, "
            f"the first at {read.line}",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
