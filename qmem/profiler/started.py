"""The processes that this one started: none of them outlives what waits for it.

It owns a list and how its members are killed, and knows nothing of what they do.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_running: "set[subprocess.Popen[bytes]]" = set()


@contextmanager
def killed_at_the_end(process: "subprocess.Popen[bytes]") -> "Iterator[subprocess.Popen[bytes]]":
    """A process in a session of its own; at the end whatever is left of that session is killed."""
    _running.add(process)
    try:
        yield process
    finally:
        _kill(process)
        _running.discard(process)


def kill_started() -> None:
    """Kill every process that runs, with all that it started: somebody interrupted."""
    for process in tuple(_running):
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
