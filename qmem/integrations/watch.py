"""``with qmem.watch(model, optimizer):`` measures a training loop that is not qmem's.

It owns where the ledger goes and what is left where memory ends; how a run is measured is ``qmem.profiler.watching``'s.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qmem.errors import UnavailableError, UsageError
from qmem.ledger import Ended, Ledger
from qmem.profiler.out_of_memory import is_out_of_memory
from qmem.profiler.storing import check_place, place_of, store, write_whole
from qmem.profiler.watching import Watch
from qmem.profiler.watching.counting import nested_stats
from qmem.profiler.watching.outline import devices_of, unwrapped
from qmem.profiler.watching.watch import running

_log = logging.getLogger("qmem")


class Watching:
    """A watch whose ledger is stored.

    What is wrong before the run is raised; from then on nothing here ends a training: it is logged.

    Attributes:
        watch: what measures; that of somebody else where this process is watched already.
        path: where the ledger goes, or ``None`` for its place under ``profiles/runs/``; of several processes that
            train together each adds its rank: ``run-rank3.json``.
        is_measuring: whether there is a device to measure.
        ledger: the result, once the watch is over or memory ended.
        stored: where the last ledger was written.
    """

    def __init__(self, path: Path | str | None, *, detail: bool) -> None:
        self.path = None if path is None else _checked(Path(path))
        self.detail, self.is_measuring = detail, False
        self.ledger: Ledger | None = None
        self.stored: Path | None = None
        other = running()
        self.is_own = other is None
        self.watch = other or Watch(in_words(), detail=detail, on_out_of_memory=self.leave_report)

    def start(self, model: Any, optimizer: Any = None) -> None:
        """Follow a model; without a GPU nothing is measured, and a warning says so.

        Raises:
            UsageError: it is no module, lies on another device than the current one, or another one is watched.
            UnsupportedError: torch allocates by another allocator than its own.
        """
        _check(model, optimizer)
        if not self.is_own:
            self._share(model)
            return
        try:
            self.watch.attach()
            _check_device(model)
            self.watch.retries_before = nested_stats()["num_alloc_retries"]
            self.watch.begin(model)
        except UnavailableError as error:
            _log.warning("qmem measures nothing: %s", error)
            return
        except BaseException:
            self.watch.stop()
            raise
        if optimizer is not None:
            self.watch.phases.only = [optimizer, getattr(optimizer, "optimizer", optimizer)]
        self.is_measuring = True

    def _share(self, model: Any) -> None:
        """Be content with a watch that runs already: torch's peaks are reset at its closings."""
        watched = None if self.watch.is_of_program else self.watch.model
        if watched is not None and unwrapped(model) is not watched:
            raise UsageError(
                f"this process is watched already, for its {type(watched).__name__}, and torch has one set of counters",
                hint="leave that block first, or watch a module that calls both",
            )
        if self.detail and not self.watch.detail:
            raise UsageError("this process is watched already, without detail", hint="ask the outer watch for detail")
        self.is_measuring = True

    def metrics(self) -> dict[str, int]:
        """Bytes at most since this was last asked; nothing where nothing is measured.

        ``qmem/peak_allocated_bytes``, ``qmem/peak_reserved_bytes``, and of each phase, such as
        ``qmem/backward_peak_allocated_bytes``.
        """
        return self.watch.metrics() if self.is_measuring else {}

    def finish(self, ended: Ended = "complete", message: str = "") -> None:
        """End the watch and store the ledger; a watch of somebody else goes on."""
        if not self.is_measuring:
            return
        try:
            ledger = self.watch.finish(ended, message) if self.is_own else self.watch.account(ended, message)
        except UnavailableError as error:
            _log.warning("qmem stores nothing: %s", error)
            return
        finally:
            self.is_measuring = False
        if ended == "out of memory" and self.is_own:
            self.leave_report(ledger)
        else:
            self._store(ledger)

    def abandon(self) -> None:
        """End the watch and leave what is stored as it is."""
        self.is_measuring = False
        if self.is_own:
            self.watch.stop()

    def leave_report(self, ledger: Ledger) -> None:
        """Store the ledger as it is where memory ended, with a page beside it that says what held the memory."""
        from qmem.report.markdown import ledger_markdown  # noqa: PLC0415

        is_first = self.ledger is None
        place = self._store(ledger)
        if place is None:
            return
        page = place.with_suffix(".md")
        try:
            write_whole(page, ledger_markdown(ledger).encode())
        except OSError as error:
            _log.warning("out of memory; %s cannot be written: %s", page, error.strerror)
        else:
            _log.log(logging.WARNING if is_first else logging.DEBUG, "out of memory; what held it: %s", page)

    def _store(self, ledger: Ledger) -> Path | None:
        self.ledger = ledger
        try:
            self.stored = store(ledger, _place_of_rank(ledger, self.path or place_of(ledger)))
        except UnavailableError as error:
            _log.warning("qmem stores nothing: %s", error.message)
            self.stored = None
        return self.stored


def _check(model: Any, optimizer: Any) -> None:
    from torch.nn import Module  # noqa: PLC0415

    if not isinstance(model, Module):
        raise UsageError(
            f"a {type(model).__name__} cannot be watched", hint="give the outermost torch.nn.Module that is called"
        )
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise UsageError(f"a {type(optimizer).__name__} is no optimizer of torch", hint="leave it out, or give one")


def _check_device(model: Any) -> None:
    import torch  # noqa: PLC0415

    here, devices = torch.cuda.current_device(), devices_of(model)
    if devices and here not in devices:
        raise UsageError(
            f"the model lies on cuda:{min(devices)}, and counters are read of the current device, cuda:{here}",
            hint=f"call torch.cuda.set_device({min(devices)}) first",
        )


def _checked(path: Path) -> Path:
    """The path, where a ledger can be written to it and a page beside it."""
    check_place(path)
    if path.suffix == ".md":
        raise UsageError(f"{path} is where a page goes that is left where memory ends", hint="name a file in .json")
    return path


def _place_of_rank(ledger: Ledger, path: Path) -> Path:
    """The path, or where several processes train each its own: ``run-rank3.json``."""
    number, told, _ = ledger.passport.get("rank", "").partition(" of ")
    return path.with_stem(f"{path.stem}-rank{number}") if told else path


@contextmanager
def watch(
    model: Any, optimizer: Any = None, *, path: Path | str | None = None, detail: bool = False
) -> Iterator[Watching]:
    """Measure the training steps inside the block, and store their ledger at its end.

    Phases are told by hooks: on the model's forward, on autograd, and on the step of the optimizer; torch's peak
    counters are reset at each.  Only counters are read, under 200 microseconds a step.

    Args:
        model: the outermost module that is called; it lies on the current device, or is moved there.
        optimizer: whose state is named; every optimizer whose step is seen, where it is left out.
        path: the file of the ledger; without it ``profiles/runs/DEVICE/MODEL--SCRIPT.json``.  Where several processes
            train together each writes its own: ``run.json`` becomes ``run-rank3.json``.
        detail: name every tensor at every closing, wait for the device there, and trace the fourth step with the
            allocator's history, to find the owners of transient memory.

    Where memory ends, the ledger and a page in Markdown beside it say what held it, and how much was fragmentation.
    Without a GPU, or where the ledger cannot be written at the end, the training goes on, and a warning is logged.

    Raises:
        UsageError: the path cannot be written to, the model is no module or lies on another device than the current
            one, or another model of this process is watched already.
        UnsupportedError: torch allocates by another allocator than its own.
    """
    watching = Watching(path, detail=detail)
    watching.start(model, optimizer)
    try:
        yield watching
    except Exception as error:
        is_end = is_out_of_memory(error)
        watching.finish("out of memory" if is_end else "failed", said_by(error))
        raise
    except BaseException as error:
        watching.finish("interrupted", said_by(error))
        raise
    watching.finish()


def said_by(error: BaseException) -> str:
    """``ValueError: a batch is broken``: the first line of an error."""
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def in_words() -> str:
    """``train.py, watched``: the script that runs, without its arguments."""
    return f"{Path(sys.argv[0]).name or 'python'}, watched"
