"""In which regimes the estimate was checked against the real program, and how far it was off there.

The file is written by ``python -m qmem.integrations.accuracy``; nothing in it is set by hand.
"""

from typing import Literal, NamedTuple

import msgspec

from qmem.catalogue.packaged import read_packaged

Replay = Literal["none", "quick", "full"]


class Errors(NamedTuple):
    """The lowest and the highest share that the estimated peak was off by, zero included."""

    low: float
    high: float


class Regime(msgspec.Struct, frozen=True):
    """Jobs of one stack and method, with or without experts, and what their peaks were off by.

    ``none``, ``quick`` and ``full`` are of allocated by replay; the others are of reserved.
    """

    stack: str
    method: str
    experts: bool
    jobs: int
    none: Errors
    quick: Errors
    full: Errors
    quick_reserved: Errors
    full_reserved: Errors

    def errors(self, replay: Replay) -> Errors:
        """The errors of allocated with one of the replays."""
        found: Errors = getattr(self, replay)
        return found

    def reserved_errors(self, replay: Replay) -> Errors | None:
        """The errors of reserved with one of the replays, of which "none" does not tell it."""
        return None if replay == "none" else self.quick_reserved if replay == "quick" else self.full_reserved


class Checked(msgspec.Struct, frozen=True):
    """What was checked: regimes, the ``model_type`` of every model, and from where to where the jobs went."""

    families: tuple[str, ...]
    ranges: dict[str, tuple[int, int]]
    regimes: tuple[Regime, ...]

    def regime(self, stack: str, method: str, *, experts: bool) -> Regime | None:
        """The regime of a job, if any of its kind was checked."""
        wanted = (stack, method, experts)
        return next((one for one in self.regimes if (one.stack, one.method, one.experts) == wanted), None)


_loaded: list[Checked] = []


def checked() -> Checked:
    """The regimes that were checked; read once."""
    if not _loaded:
        _loaded.append(msgspec.json.decode(read_packaged("checked.json"), type=Checked))
    return _loaded[0]
