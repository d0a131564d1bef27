"""The two streams: stdout carries the result, stderr what a person should know about it.

The only file that knows encodings, closed pipes and files to write; it knows nothing of what is written.
"""

import codecs
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from qmem.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from typing import TextIO

    from rich.console import Console

MIN_WIDTH = 40
"""Below this many columns lines are cut by the terminal instead."""

_PLAIN_NAME = "qmem.plain"
_LINES = {**dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺", "-"), **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻", "|")}
"""Box drawings that are straight lines; the others are corners and crossings."""


def prepare_streams() -> None:
    """From here on no sign can break a stream: what its encoding does not have is spelled in ASCII."""
    codecs.register_error(_PLAIN_NAME, _spell_plainly)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_PLAIN_NAME)


def _spell_plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(sign: str) -> str:
    from qmem.report.text import spelling

    if "\u2500" <= sign <= "\u257f":
        return _LINES.get(sign, "+")
    return spelling("ascii")(sign)


def result_console() -> "Console":
    """A console of stdout's width, colours and encoding; render inside its ``capture()``, then ``write_result``."""
    from rich.console import Console

    console = Console(file=cast("TextIO", _Unwritten()), highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    return console


class _Unwritten:
    """Looks like stdout to whoever renders for it, and is not written: a full disk fails at an empty text too."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return


def write_result(text: str) -> None:
    """The result, on stdout.  A reader that stops reading (``| head``) has what it wants.

    Raises:
        UnavailableError: stdout cannot be written, for example because its disk is full.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout.fileno())
    except OSError as error:
        _drop(sys.stdout.fileno())
        raise UnavailableError(f"the result cannot be written: {error.strerror}") from error


def write_note(text: str) -> None:
    """A line for the person, on stderr: ``qmem: ...``."""
    try:
        sys.stderr.write(f"qmem: {' '.join(text.split())}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        _drop(sys.stderr.fileno())


def _drop(descriptor: int) -> None:
    """Sends what is still buffered nowhere, so that the interpreter does not complain about it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def write_file(path: str, content: bytes) -> None:
    """A file that is there whole or not at all: written beside its place, then renamed.

    What is no plain file (``/dev/null``, a named pipe) is written to and never replaced.

    Raises:
        UsageError: the place cannot be written.
    """
    try:
        place = os.path.realpath(path)
        if os.path.exists(place) and not os.path.isfile(place):  # noqa: PTH110, PTH113 - pathlib costs start-up time
            _write(place, "wb", content)
        else:
            _write_beside(place, content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot write {path!r}: {reason}", hint="name a file that can be written") from error


def _write_beside(place: str, content: bytes) -> None:
    # A name of its own: in containers every process may have the same number, and a killed one leaves its part.
    beside = f"{place}.{os.urandom(6).hex()}.part"
    try:
        _write(beside, "xb", content)
        os.replace(beside, place)  # noqa: PTH105
    except BaseException:
        _remove(beside)
        raise


def _write(path: str, mode: str, content: bytes) -> None:
    with open(path, mode) as file:  # noqa: PTH123
        file.write(content)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)  # noqa: PTH107
