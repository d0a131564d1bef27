"""Python runs this before a program that qmem watches: once the program imports torch, qmem is told.

Nothing else happens to a process that imports no torch.  Whatever other ``sitecustomize`` is on the path runs too.
"""

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class TorchFinder(MetaPathFinder):
    """Finds torch, once, and has the watch start when its import is done."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002 - a finder's
        """The spec of torch; ``None`` for all else."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def run_and_watch(module: Any) -> None:
            run(module)
            from qmem.profiler.watching.child import start  # noqa: PLC0415

            start()

        loader.exec_module = run_and_watch
        return spec


def _run_the_next() -> None:
    """The ``sitecustomize`` that would have run without this one."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - before the program pathlib is not loaded
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]  # noqa: PTH100
    sys.modules.pop("sitecustomize", None)
    if importlib.util.find_spec("sitecustomize") is not None:
        importlib.import_module("sitecustomize")


if "QMEM_WATCH" in os.environ:
    sys.meta_path.insert(0, TorchFinder())
    _run_the_next()
