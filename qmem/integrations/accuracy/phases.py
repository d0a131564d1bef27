"""Requested bytes phase by phase: where the estimate and the phantom differ, or only one of them has the phase.

A phase that one side lacks is held against what that side says of the moment: the same phase of its last micro-step,
which stands for all later ones, else what it held when the phase before closed.
"""

import sys
from typing import NamedTuple, get_args

from qmem.ledger import Ledger
from qmem.ledger.comparison import phase_key
from qmem.ledger.ledger import Moment, Phase

Key = tuple[int, int, Phase]

_PHASES: tuple[Phase, ...] = get_args(Phase)


class PhaseError(NamedTuple):
    """What the estimate is off by in one phase, in requested bytes.

    Attributes:
        key: step, micro-step and phase.
        only: the side that has the phase, where the other has not; else empty.
        closing, peak: off by when the phase closes and at its fullest; absent where a side says nothing.
    """

    key: Key
    only: str
    closing: int | None
    peak: int | None

    @property
    def differs(self) -> bool:
        """Whether any byte differs or is not known."""
        return (self.closing, self.peak) != (0, 0)

    def __str__(self) -> str:
        return str(Moment(*self.key, tick=0))


class Held(NamedTuple):
    """Requested bytes at the closing of a phase and at its fullest; absent where nothing was read."""

    closing: int | None
    peak: int | None


def phase_errors(estimated: Ledger, measured: Ledger) -> tuple[PhaseError, ...]:
    """The phases that differ or that one side lacks, in the order of a training step."""
    mine, theirs = _held(estimated), _held(measured)
    errors = (_error(key, mine, theirs) for key in sorted(mine.keys() | theirs.keys(), key=_order))
    return tuple(error for error in errors if error.only or error.differs)


def closing_error(estimated: Ledger, measured: Ledger, phase: Phase) -> int | None:
    """Requested bytes off by when a phase before training closes; absent where a side has neither it nor one before."""
    return _error((0, 0, phase), _held(estimated), _held(measured)).closing


def _error(key: Key, mine: dict[Key, Held], theirs: dict[Key, Held]) -> PhaseError:
    here, there = _or_stand_in(mine, key), _or_stand_in(theirs, key)
    only = "" if (key in mine) == (key in theirs) else "estimate" if key in mine else "phantom"
    return PhaseError(key, only, _less(here.closing, there.closing), _less(here.peak, there.peak))


def _less(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a - b


def _or_stand_in(held: dict[Key, Held], key: Key) -> Held:
    if key in held:
        return held[key]
    step, micro_step, phase = key
    earlier = [(step, number, phase) for number in range(micro_step - 1, 0, -1) if (step, number, phase) in held]
    if earlier:
        return held[earlier[0]]
    before = max((other for other in held if _order(other) < _order(key)), key=_order, default=None)
    closing = held[before].closing if before else None
    return Held(closing, closing)


def _order(key: Key) -> tuple[int, int, int]:
    """Micro-step by micro-step; the optimizer and what follows it come after all of them."""
    step, micro_step, phase = key
    place = _PHASES.index(phase)
    repeats = place < _PHASES.index("optimizer step")
    return step, micro_step if repeats else sys.maxsize, place


def _held(ledger: Ledger) -> dict[Key, Held]:
    held: dict[Key, Held] = {}
    for reading in sorted(ledger.readings, key=lambda reading: reading.moment.tick):
        if reading.waterline != "requested" or not isinstance(reading.n_bytes, int):
            continue
        key = phase_key(reading.moment)
        closing, peak = held.get(key, Held(None, None))
        if reading.measure == "current":
            held[key] = Held(reading.n_bytes, peak)
        else:
            held[key] = Held(closing, max(reading.n_bytes, peak or 0))
    return held
