"""``qmem.TrainerCallback`` measures a run of transformers' Trainer and of all that derive from it.

It owns which of the Trainer's events begin, log and end a watch.  This module imports transformers.
"""

import atexit
import sys
from pathlib import Path
from typing import Any

import transformers

from qmem.integrations.watch import Watching, said_by
from qmem.ledger import Ended


class TrainerCallback(transformers.TrainerCallback):
    """Measures the steps of a Trainer as they run, logs their peaks, and stores a ledger at the end.

    ``Trainer(..., callbacks=[qmem.TrainerCallback()])``.  What is logged gains ``qmem/peak_allocated_bytes``,
    ``qmem/peak_reserved_bytes`` and the peak of each phase, in bytes, since the last log; the state's history has them
    too.  A Trainer calls those that report to W&B or TensorBoard before the callbacks that it is given:
    ``callback.attach(trainer)`` puts this one first, so that they see the metrics.

    Args:
        path: the file of the ledger; without it ``profiles/runs/DEVICE/MODEL--SCRIPT.json``.  Where several processes
            train together each is measured and writes its own: ``run.json`` becomes ``run-rank3.json``.
        detail: name every tensor at every closing, and trace the fourth step (see ``qmem.watch``).

    Where memory ends, the ledger and a page in Markdown beside it say what held it, and how much was fragmentation.
    """

    def __init__(self, *, path: Path | str | None = None, detail: bool = False) -> None:
        self.path, self.detail = path, detail
        self.watching: Watching | None = None

    def attach(self, trainer: Any) -> None:
        """Have a Trainer call this before all its other callbacks."""
        handler = trainer.callback_handler
        handler.callbacks = [self, *(one for one in handler.callbacks if one is not self)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the Trainer's
        """Follow the model; one that is still followed belongs to a training that an error has ended.

        Raises:
            UsageError: the path cannot be written to, or another model of this process is watched.
        """
        self._end()
        watching = Watching(self.path, detail=self.detail)
        watching.start(kwargs["model"])
        self.watching = watching
        atexit.register(self._end)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Put the peaks beside what is logged."""
        if self.watching is not None and logs is not None:
            metrics = self.watching.metrics()
            logs.update(metrics)
            if state.log_history:
                state.log_history[-1].update(metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Store the ledger."""
        if self.watching is not None:
            self.watching.finish()
            self._forget()

    def _end(self) -> None:
        """Store what was seen of a training that ended without a word; what out of memory has left stays as it is."""
        if self.watching is None:
            return
        error = getattr(sys, "last_value", None)
        ended: Ended = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        left = self.watching.ledger
        if left is not None and left.ended == "out of memory":
            self.watching.abandon()
        else:
            self.watching.finish(ended, said_by(error) if error else "an error that the program went on from")
        self._forget()

    def _forget(self) -> None:
        self.watching = None
        atexit.unregister(self._end)
