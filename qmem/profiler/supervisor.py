"""The parent's side of a run: starts the worker, follows it, and survives whatever happens to it.

It knows processes and pipes, and nothing of what the events mean.
"""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, NamedTuple

import msgspec

from qmem.ledger import Ended
from qmem.profiler.environment import worker_environment
from qmem.profiler.protocol import AnyEvent, Failed, Finished, Request, decode, encode_request
from qmem.profiler.started import killed_at_the_end

OWN_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
"""An interrupt from the keyboard reaches this process alone: on Windows by this flag, elsewhere by a session of the
worker's own."""

LAST_LINES = 3
"""How much of what a crashed worker printed is shown."""


class Told(NamedTuple):
    """Everything a worker told, how its run ended, and a sentence about an end that is not the good one."""

    events: list[AnyEvent]
    ended: Ended
    message: str = ""


def run_worker(request: Request, on_event: Callable[[AnyEvent], None]) -> Told:
    """Run a request in a process of its own; ``on_event`` is called with each event as it comes.

    An interrupt from the keyboard ends the worker, not this process; what was told until then is returned.
    """
    events: list[AnyEvent] = []
    with tempfile.TemporaryFile() as log, _started(request, log) as process:
        try:
            for event in _events(process):
                events.append(event)
                on_event(event)
            process.wait()
        except KeyboardInterrupt:
            return Told(events, "interrupted", "interrupted from the keyboard")
        return _ended(events, process.returncode, log)


@contextmanager
def _started(request: Request, log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """The worker, which writes events to its stdout; whatever is left of it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qmem.profiler.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=worker_environment(request.job),
        start_new_session=True, creationflags=OWN_GROUP,
    )  # fmt: skip
    with process, killed_at_the_end(process):
        _send(process, request)
        yield process


def _send(process: "subprocess.Popen[bytes]", request: Request) -> None:
    """A worker that dies before it has read its request shows that by its exit code."""
    assert process.stdin is not None, "it was asked for"
    with suppress(BrokenPipeError):
        process.stdin.write(encode_request(request))
        process.stdin.close()


def _events(process: "subprocess.Popen[bytes]") -> Iterator[AnyEvent]:
    """The events until the pipe closes; a line that the worker's death cut short is none."""
    assert process.stdout is not None, "it was asked for"
    with suppress(msgspec.MsgspecError):
        for line in process.stdout:
            yield decode(line)


def _ended(events: list[AnyEvent], code: int, log: IO[bytes]) -> Told:
    """How the run ended, from its last event or from the exit code."""
    last = events[-1] if events else None
    if isinstance(last, Finished):
        return Told(events, "complete")
    if isinstance(last, Failed):
        return Told(events, "out of memory" if last.why == "out of memory" else "failed", last.message)
    return Told(events, "failed", f"the worker {death(code)}{last_words(log)}")


def death(code: int) -> str:
    """How a process ended, in words that follow its name."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (the machine may have run out of host memory)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def last_words(log: IO[bytes]) -> str:
    """The last lines that a process printed."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f"; its last words: {' / '.join(lines[-LAST_LINES:])}" if lines else ""
