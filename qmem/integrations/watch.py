"""``with qmem.watch(model, optimizer):`` measures a training loop that is not qmem's.

It owns where the ledger goes and what is left where memory ends; how a run is measured is ``qmem.profiler.watching``'s.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qmem.ledger import Ended, Ledger
from qmem.profiler.out_of_memory import is_out_of_memory
from qmem.profiler.storing import check_place, store
from qmem.profiler.watching import Watch
from qmem.profiler.watching.watch import running

_log = logging.getLogger("qmem")


class Watching:
    """A watch whose ledger is stored.

    Attributes:
        watch: what measures; that of somebody else where this process is watched already.
        path: where the ledger goes, or ``None`` for its place under ``profiles/runs/``.
        ledger: the result, once the watch is over or memory ended.
        stored: where the last ledger was written.
    """

    def __init__(self, path: Path | str | None, *, detail: bool) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            check_place(self.path)
        self.ledger: Ledger | None = None
        self.stored: Path | None = None
        other = running()
        self.is_own = other is None
        self.watch = other or Watch(in_words(), detail=detail, on_out_of_memory=self.leave_report)

    def start(self, model: Any) -> None:
        """Follow a model.

        Raises:
            UnavailableError: this machine has no GPU that CUDA can use.
        """
        if self.is_own:
            self.watch.attach()
            self.watch.begin(model)

    def metrics(self) -> dict[str, int]:
        """Bytes at most since this was last asked.

        ``qmem/peak_allocated_bytes``, ``qmem/peak_reserved_bytes``, and of each phase, such as
        ``qmem/backward_peak_allocated_bytes``.
        """
        return self.watch.metrics()

    def finish(self, ended: Ended = "complete", message: str = "") -> None:
        """End the watch and store the ledger; a watch of somebody else goes on."""
        if not self.is_own:
            self._store(self.watch.account(ended, message))
        elif ended == "out of memory":
            self.leave_report(self.watch.finish(ended, message))
        else:
            self._store(self.watch.finish(ended, message))

    def leave_report(self, ledger: Ledger) -> None:
        """Store the ledger as it is where memory ended, with a page beside it that says what held the memory."""
        from qmem.report.markdown import ledger_markdown  # noqa: PLC0415

        place = self._store(ledger)
        page = place.with_suffix(".md")
        page.write_text(ledger_markdown(ledger), encoding="utf-8")
        _log.warning("out of memory; what held it: %s", page)

    def _store(self, ledger: Ledger) -> Path:
        self.ledger = ledger
        self.stored = store(ledger, self.path)
        return self.stored


@contextmanager
def watch(
    model: Any, optimizer: Any = None, *, path: Path | str | None = None, detail: bool = False
) -> Iterator[Watching]:
    """Measure the training steps inside the block, and store their ledger at its end.

    Phases are told by hooks: on the model's forward, on autograd, and on the step of the optimizer; torch's peak
    counters are reset at each.  Only counters are read, under 200 microseconds a step.

    Args:
        model: the outermost module that is called.
        optimizer: whose state is named; every optimizer whose step is seen, where it is left out.
        path: the file of the ledger; without it ``profiles/runs/DEVICE/MODEL--SCRIPT.json``.
        detail: name every tensor at every closing, wait for the device there, and trace the fourth step with the
            allocator's history, to find the owners of transient memory.

    Where memory ends, the ledger and a page in Markdown beside it say what held it, and how much was fragmentation.

    Raises:
        UsageError: the path cannot be written to.
        UnavailableError: this machine has no GPU that CUDA can use, or the ledger cannot be written.
        UnsupportedError: torch allocates by another allocator than its own.
    """
    watching = Watching(path, detail=detail)
    if optimizer is not None and watching.is_own:
        watching.watch.phases.only = [optimizer, getattr(optimizer, "optimizer", optimizer)]
    watching.start(model)
    try:
        yield watching
    except Exception as error:
        is_end = is_out_of_memory(error)
        watching.finish("out of memory" if is_end else "failed", f"{type(error).__name__}: {error}".partition("\n")[0])
        raise
    except BaseException:
        watching.finish("interrupted", "interrupted")
        raise
    watching.finish()


def in_words() -> str:
    """``train.py, watched``: the script that runs, without its arguments."""
    return f"{Path(sys.argv[0]).name or 'python'}, watched"
