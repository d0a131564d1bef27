"""Being told to end: a runner that cancels a job sends SIGTERM, a terminal that is closed SIGHUP.

Both are taken as an interrupt from the keyboard, so that what was started is ended too.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGTERM", "SIGHUP")


@contextmanager
def told_to_end() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` where this process is told to end; what is ignored already (``nohup``) stays so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
        before = {number: signal.signal(number, _interrupt) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
