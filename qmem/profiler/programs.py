"""A program that trains, measured from outside: started with a watch in it, ended when enough steps were seen.

It owns processes; what happens in them is ``qmem.profiler.watching``'s.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qmem.catalogue import Gpu
from qmem.errors import UnavailableError, UsageError
from qmem.ledger import Ledger, from_json
from qmem.profiler.started import killed_at_the_end
from qmem.profiler.supervisor import death, last_words
from qmem.profiler.watching.asked import Asked

CALL = "import sys; from qmem.profiler.watching.child import call; call(sys.argv[1])"


def run_program(
    command: Sequence[str],
    folder: Path,
    *,
    phantom: Gpu | None = None,
    memory: int | None = None,
    steps: int = 3,
    run: str = "",
) -> Ledger:
    """The ledger of a program's training steps.

    Args:
        command: the program and its arguments; ``python`` is the one that runs qmem.
        folder: where it runs.
        phantom: the card to simulate, for the program and all that it starts; without it this machine's GPU.
        memory: bytes of the simulated card, where they are to differ from the catalogue's.
        steps: clean steps; one more is traced, and the program is ended after it.
        run: the program in words, where its command does not say what it is.

    Raises:
        UsageError: there is no such program, it failed, or nothing in it trained on the GPU.
        UnavailableError: it was killed, or the phantom cannot run here.
        UnsupportedError: the card cannot be simulated.
    """
    run = run or " ".join(command)
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as log:
        environment = _environment(Asked(run, place, steps), phantom, memory)
        with _started(command, folder, environment, log) as process:
            code = process.wait()
        ledgers = [from_json(path.read_bytes()) for path in sorted(Path(place).glob("*.json"))]
        return _chosen(ledgers, run, code, log)


def run_call(
    target: str, folder: Path, *, phantom: Gpu | None = None, memory: int | None = None, steps: int = 3
) -> Ledger:
    """The ledger of a Python callable, ``module:function``, as :func:`run_program` has it."""
    command = (sys.executable, "-c", CALL, target)
    return run_program(command, folder, phantom=phantom, memory=memory, steps=steps, run=target)


def _environment(asked: Asked, phantom: Gpu | None, memory: int | None) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, **asked.environment(), **_device(phantom, memory)}


def _device(phantom: Gpu | None, memory: int | None) -> dict[str, str]:
    """The variables that put a phantom in the real card's place."""
    if phantom is None:
        return {}
    from qmem.phantom import loader  # noqa: PLC0415

    loader.refuse_bad_place(beside_driver=False)
    return loader.describe(phantom, memory=memory).environment()


@contextmanager
def _started(
    command: Sequence[str], folder: Path, environment: dict[str, str], log: IO[bytes]
) -> "Iterator[subprocess.Popen[bytes]]":
    """The program in a session of its own."""
    import shutil  # noqa: PLC0415

    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise UsageError(f"there is no program {command[0]!r}", hint='write command = "python train.py", for example')
    process = subprocess.Popen(  # noqa: S603 - to run it is the purpose
        [program, *command[1:]],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    with killed_at_the_end(process):
        yield process


def _chosen(ledgers: list[Ledger], run: str, code: int, log: IO[bytes]) -> Ledger:
    """The ledger of the process that took most; what the program says by its end goes before."""
    ended = next((ledger for ledger in ledgers if ledger.ended == "out of memory"), None)
    if ended is not None:
        return ended
    if code < 0:
        raise UnavailableError(f"{run} {death(code)}{last_words(log)}")
    if code:
        raise UsageError(f"{run} {death(code)}{last_words(log)}", hint="does it run by itself?")
    if not ledgers:
        raise UsageError(
            f"{run} ended, and no training step on the GPU was seen{last_words(log)}",
            hint="a module must be called in training mode, in a Python that has qmem installed",
        )
    return max(ledgers, key=lambda ledger: ledger.peak.allocated_bytes)
