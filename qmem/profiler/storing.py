"""Where profiles are kept: ``profiles/runs/DEVICE/MODEL--JOB.json``, whole or not at all.

A stored profile is replaced by a newer one of the same job on the same device, never damaged by a failed one.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec

from qmem.errors import UnavailableError, UsageError
from qmem.ledger import Ledger, to_json

RUNS = Path("profiles") / "runs"
ABANDONED_S = 3600
"""Seconds after which nobody writes a file any more that was begun."""

_UNFIT = re.compile(r"[^A-Za-z0-9.]+")


def place_of(ledger: Ledger) -> Path:
    """The file of a ledger; its name says the common fields and ends in a digest of the whole job."""
    model = ledger.model.rstrip("/").rpartition("/")[2]
    return RUNS / _plain(_device(ledger)) / f"{_plain(model)}--{_plain(_asked(ledger))}.json"


def _asked(ledger: Ledger) -> str:
    if ledger.watched:
        return ledger.watched
    job = ledger.job
    adapter = f"-r{job.rank}" if job.has_adapter else ""
    return f"{job.method}{adapter}-b{job.batch}-s{job.seq}-{job.stack}-{_digest(ledger)}"


def _device(ledger: Ledger) -> str:
    """The device's name; a simulated card whose size was set is another one."""
    return f"{ledger.device} {int(ledger.passport.get('total bytes', 0)) >> 20} MiB"


def _digest(ledger: Ledger) -> str:
    from hashlib import sha256  # noqa: PLC0415

    return sha256(msgspec.json.encode(ledger.job, order="deterministic")).hexdigest()[:8]


def _plain(text: str) -> str:
    return _UNFIT.sub("-", text).strip("-")


def check_place(path: Path) -> None:
    """Raise ``UsageError`` before a run where its ledger could not be written to the file that was named."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", hint="make it, or name a file in another one")


def store(ledger: Ledger, path: Path | None = None) -> Path:
    """Write a ledger to ``path``, or to its place, and return where it is.

    Raises:
        UnavailableError: it cannot be written; what was stored there before is as it was.
    """
    place = path or place_of(ledger)
    try:
        write_whole(place, to_json(ledger) + b"\n")
    except OSError as error:
        raise UnavailableError(
            f"the profile cannot be stored as {place}: {error.strerror}", hint="name another file with -o"
        ) from error
    return place


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside its place, then renamed.  Its folder is made where it is missing.

    What a process left that was killed while it wrote the same file goes, once nobody can still be writing it.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    # A name of its own: in containers every process may have the same number, and a killed one leaves its part.
    part = path.with_name(f"{path.name}.{os.urandom(6).hex()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(part, content)
        part.replace(path)
    except BaseException:
        _remove(part)
        raise
    _sweep(path)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        # A full disk may say so only here.
        os.fsync(file.fileno())


def _sweep(path: Path) -> None:
    import time  # noqa: PLC0415

    for part in path.parent.glob(f"{path.name}.*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
