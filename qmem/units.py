"""Bytes and the text people write for them.  The only file that knows 1024."""

import re

from qmem.errors import UsageError

KIB = 1024
MIB = 1024**2
GIB = 1024**3
GB = 1000**3

_FACTOR = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 1000,
    "m": MIB, "mib": MIB, "mb": 1000**2,
    "g": GIB, "gib": GIB, "gb": GB,
    "t": 1024**4, "tib": 1024**4, "tb": 1000**4,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes meant by ``24GiB`` (2**30), ``24GB`` (10**9), ``24g`` (2**30, as torch and docker read it) or ``512``.

    Raises:
        UsageError: the text is not an amount of memory.
    """
    match = _AMOUNT.fullmatch(text)
    factor = _FACTOR.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"not an amount of memory: {text!r}", hint="write for example 24GiB, 24GB or 512MiB")
    return round(float(match["number"]) * factor)


def format_move(was: int, now: int) -> str:
    """``3.97 GiB -> 8.20 GiB``; in a smaller unit where both would read the same: ``1,067.45 MiB -> 1,069.45 MiB``."""
    in_units = [
        (f"{was / size:,.2f} {unit}", f"{now / size:,.2f} {unit}") for unit, size in (("MiB", MIB), ("KiB", KIB))
    ]
    written = ((format_bytes(was), format_bytes(now)), *in_units, (f"{was:,} B", f"{now:,} B"))
    return " -> ".join(next((pair for pair in written if pair[0] != pair[1]), written[0]))


def format_gib(n_bytes: int) -> str:
    """``19.44 GiB``: two decimals, as totals are shown."""
    return f"{n_bytes / GIB:.2f} GiB"


def format_gb(n_bytes: float) -> str:
    """``20.87 GB``: decimal gigabytes, for figures that their source printed in GB."""
    return f"{n_bytes / GB:.2f} GB"


def format_bytes(n_bytes: int) -> str:
    """The amount in the largest binary unit that leaves at least 1: ``512 B``, ``8.12 MiB``, ``5.80 GiB``."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(n_bytes) >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{n_bytes} B"
