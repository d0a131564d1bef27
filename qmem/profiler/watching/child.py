"""In the process of a program that is watched: find what trains, end the program when enough was seen, leave a ledger.

The outermost module that is called in training and has something to train is what is watched.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from qmem.ledger import Ended, Ledger, to_json
from qmem.profiler.out_of_memory import is_out_of_memory
from qmem.profiler.watching.asked import Asked, asked
from qmem.profiler.watching.watch import Watch, observe_end_of_memory


def start() -> None:
    """Watch this process; torch was just imported."""
    _Child(asked()).start()


class _Child:
    """The watch of this process, and the file that its ledger goes to."""

    def __init__(self, wanted: Asked) -> None:
        self.place = Path(wanted.folder, f"{os.getpid()}.json")
        self.pid = os.getpid()
        self.enough = wanted.steps + 2
        self.watch = Watch(
            wanted.run, detail=True, clean_steps=wanted.steps, on_out_of_memory=self.leave, begins=self._begins,
            is_of_program=True,
        )  # fmt: skip

    def start(self) -> None:
        import torch  # noqa: PLC0415
        from torch.nn.modules.module import register_module_forward_pre_hook  # noqa: PLC0415

        cuda: Any = torch.cuda
        self.watch.guard()
        cuda._lazy_call(observe_end_of_memory)  # noqa: SLF001 - the process may never use CUDA
        self.looking = register_module_forward_pre_hook(self._look)
        atexit.register(self._end)

    def leave(self, ledger: Ledger) -> None:
        """Write the ledger, whole or not at all."""
        unfinished = self.place.with_suffix(".part")
        unfinished.write_bytes(to_json(ledger))
        unfinished.replace(self.place)

    def _look(self, module: Any, arguments: Any) -> None:
        """Whether a module that is called is what is trained."""
        import torch  # noqa: PLC0415

        if os.getpid() != self.pid or not (module.training and torch.is_grad_enabled()):
            return
        trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
        if any(parameter.is_cuda for parameter in trained):
            self.looking.remove()
            self.watch.attach()
            self.watch.begin(module)
            self.watch.phases.see_forward(module, arguments)

    def _begins(self, step: int) -> None:
        if step == self.enough:
            self._finish("complete")
            sys.exit(0)

    def _end(self) -> None:
        """The program is over: by itself, or by an error."""
        if os.getpid() != self.pid or self.place.exists() or self.watch.model is None:
            return
        error = getattr(sys, "last_value", None)
        if error is None:
            self._finish("complete")
        elif isinstance(error, Exception) and is_out_of_memory(error):
            self._finish("out of memory", str(error).partition("\n")[0])

    def _finish(self, ended: Ended, message: str = "") -> None:
        self.leave(self.watch.finish(ended, message))


def call(target: str) -> None:
    """Call ``module:function`` of the working folder.

    Raises:
        SystemExit: there is no such function; the message says what is missing.
    """
    from importlib import import_module  # noqa: PLC0415

    module, _, name = target.partition(":")
    function = getattr(import_module(module), name, None) if name else None
    if not callable(function):
        sys.exit(
            f"{target}: the module {module} has no function {name!r}" if name else f"{target} is no module:function"
        )
    function()
