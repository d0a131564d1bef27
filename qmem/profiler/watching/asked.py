"""What a process is asked that is to be watched: a variable of its environment, which its children inherit."""

import os
from pathlib import Path

import msgspec

VARIABLE = "QMEM_WATCH"
HOOK = Path(__file__).with_name("hook")
"""A folder for ``PYTHONPATH``, with a ``sitecustomize`` that starts the watch."""


class Asked(msgspec.Struct, frozen=True):
    """How to watch.

    Attributes:
        run: the program in words.
        folder: where each process that trains leaves its ledger.
        steps: clean steps; after them and the traced one the program is ended.
    """

    run: str
    folder: str
    steps: int

    def environment(self) -> dict[str, str]:
        """The variables of the process."""
        path = os.pathsep.join(filter(None, [str(HOOK), os.environ.get("PYTHONPATH", "")]))
        return {VARIABLE: msgspec.json.encode(self).decode(), "PYTHONPATH": path}


def asked() -> Asked:
    """What this process is asked."""
    return msgspec.json.decode(os.environ[VARIABLE], type=Asked)
