"""Two ledgers side by side: what was asked differently, and every number that both can tell.

It owns which number of one ledger stands beside which of the other.  It rounds nothing, judges nothing and knows
nothing of text.  Differences are ``b`` less ``a``.
"""

from typing import get_args

import msgspec

from qmem.ledger.asked import FieldDifference, differing_fields
from qmem.ledger.differences import (
    Amount,
    CounterDifference,
    KindDifference,
    Measure,
    Number,
    ReadingDifference,
    ends,
)
from qmem.ledger.holdings import OwnerDifference, differing_at_peak, differing_residents
from qmem.ledger.kinds import WATERLINES, Kind, Waterline
from qmem.ledger.ledger import Ledger, Moment, Peak, Phase, Reading

STEADY_STEP = 2
"""From this step on all steps are alike: the optimizer has its state."""

_PHASES: tuple[str, ...] = get_args(Phase)


class PhaseComparison(msgspec.Struct, frozen=True, kw_only=True):
    """A phase that both ledgers have: kinds at its closing, where they must agree, and its readings.

    ``kinds`` is empty where one of the two does not say what was current when the phase closed.
    """

    step: int
    micro_step: int
    phase: Phase
    kinds: tuple[KindDifference, ...]
    readings: tuple[ReadingDifference, ...]

    @property
    def numbers(self) -> tuple[Number, ...]:
        """Readings and kinds."""
        return (*self.readings, *self.kinds)


class PeakComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The fullest moments.  ``scored``: both are in the same phase, so that kinds can be held against each other."""

    a: Moment
    b: Moment
    scored: bool
    kinds: tuple[KindDifference, ...]
    readings: tuple[ReadingDifference, ...]
    holdings: tuple[OwnerDifference, ...]

    @property
    def numbers(self) -> tuple[Number, ...]:
        """Waterlines and kinds."""
        return (*self.readings, *self.kinds)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two ledgers compared.

    Attributes:
        fields: what differs in instrument, state, model, device, parameters, job, stack, versions and passport.
        peak: kinds, waterlines and differing holdings at the two peaks.
        phases: the phases that both have, in the order of a training step.
        only_a, only_b: phases that one of them lacks.
        owners: named tensors that differ in what they hold at the closings of common phases.
        counters: numbers of the whole run, where at least one of them has any.
        paged_a, paged_b: managed bytes, which are outside torch's waterlines.
    """

    fields: tuple[FieldDifference, ...]
    peak: PeakComparison
    phases: tuple[PhaseComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    owners: tuple[OwnerDifference, ...]
    counters: tuple[CounterDifference, ...]
    paged_a: int
    paged_b: int

    @property
    def numbers(self) -> tuple[Number, ...]:
        """Every number of the peak and of the phases that at least one of the two knows."""
        return (*self.peak.numbers, *(number for phase in self.phases for number in phase.numbers))

    @property
    def is_equal(self) -> bool:
        """Whether nothing at all differs."""
        named = (*self.fields, *self.only_a, *self.only_b, *self.owners, *self.peak.holdings)
        same_moment = phase_key(self.peak.a) == phase_key(self.peak.b)
        numbers_agree = all(number.a == number.b for number in (*self.numbers, *self.counters))
        return not named and same_moment and numbers_agree and self.paged_a == self.paged_b


def compare(a: Ledger, b: Ledger) -> Comparison:
    """Compare two ledgers, phase by phase, kind by kind, waterline by waterline and owner by owner."""
    phases_a, phases_b = _phases(a), _phases(b)
    common = sorted(phases_a.keys() & phases_b.keys(), key=_order)
    closings = [(_closing(phases_a[key]), _closing(phases_b[key])) for key in common]
    closed = [(at_a, at_b) for at_a, at_b in closings if at_a and at_b]
    return Comparison(
        fields=differing_fields(a, b),
        peak=_peak(a, b),
        phases=tuple(_phase(key, (a, phases_a[key]), (b, phases_b[key])) for key in common),
        only_a=_names(phases_a.keys() - phases_b.keys()),
        only_b=_names(phases_b.keys() - phases_a.keys()),
        owners=differing_residents(a, b, closed),
        counters=_counters(a, b),
        paged_a=a.paged_bytes,
        paged_b=b.paged_bytes,
    )


_Key = tuple[int, int, Phase]


def phase_key(moment: Moment) -> _Key:
    """What names a phase in any ledger: before training there are no micro-steps, and ticks are an instrument's own."""
    return moment.step, moment.micro_step if moment.step else 0, moment.phase


def _order(key: _Key) -> tuple[int, int, int]:
    step, micro_step, phase = key
    return step, micro_step, _PHASES.index(phase)


def _names(keys: set[_Key]) -> tuple[str, ...]:
    return tuple(str(Moment(*key, tick=0)) for key in sorted(keys, key=_order))


def _phases(ledger: Ledger) -> dict[_Key, list[Reading]]:
    """The readings of each phase."""
    phases: dict[_Key, list[Reading]] = {}
    for reading in ledger.readings:
        phases.setdefault(phase_key(reading.moment), []).append(reading)
    return phases


def _closing(readings: list[Reading]) -> Moment | None:
    """The last moment of the phase at which something was read."""
    moments = [reading.moment for reading in readings if reading.measure == "current"]
    return max(moments, key=_tick, default=None)


def _tick(moment: Moment) -> int:
    return moment.tick


def _phase(key: _Key, in_a: tuple[Ledger, list[Reading]], in_b: tuple[Ledger, list[Reading]]) -> PhaseComparison:
    step, micro_step, phase = key
    return PhaseComparison(
        step=step,
        micro_step=micro_step,
        phase=phase,
        kinds=_kinds_at_closing(in_a, in_b),
        readings=_readings(_counted(in_a[1]), _counted(in_b[1])),
    )


_Counted = dict[tuple[Waterline, Measure], Amount]


def _counted(readings: list[Reading]) -> _Counted:
    """The last current and the highest peak at each waterline."""
    counted: _Counted = {}
    for reading in sorted(readings, key=_reading_tick):
        key = reading.waterline, reading.measure
        higher = key not in counted or ends(reading.n_bytes)[1] > ends(counted[key])[1]
        if reading.measure == "current" or higher:
            counted[key] = reading.n_bytes
    return counted


def _reading_tick(reading: Reading) -> int:
    return reading.moment.tick


def _readings(a: _Counted, b: _Counted) -> tuple[ReadingDifference, ...]:
    measures: tuple[Measure, ...] = ("peak", "current")
    keys = [(waterline, measure) for measure in measures for waterline in WATERLINES]
    return tuple(ReadingDifference(*key, a.get(key), b.get(key)) for key in keys if key in a or key in b)


def _kinds_at_closing(
    in_a: tuple[Ledger, list[Reading]], in_b: tuple[Ledger, list[Reading]]
) -> tuple[KindDifference, ...]:
    at_a, at_b = _closing(in_a[1]), _closing(in_b[1])
    if at_a is None or at_b is None:
        return ()
    return _kinds(_kinds_at(in_a[0], at_a, _current(in_a[1])), _kinds_at(in_b[0], at_b, _current(in_b[1])))


def _current(readings: list[Reading]) -> dict[Waterline, Amount]:
    return {waterline: n_bytes for (waterline, measure), n_bytes in _counted(readings).items() if measure == "current"}


def _kinds_at(ledger: Ledger, moment: Moment, counted: dict[Waterline, Amount]) -> dict[Kind, int]:
    """Bytes of each kind on the GPU at a moment, up to *reserved*, with what the counters add to the items."""
    alive = ledger.by_kind(moment)
    kinds = {kind: n_bytes for kind, n_bytes in alive.items() if kind.waterline == "requested"}
    requested, allocated, reserved = (_exact(counted.get(waterline)) for waterline in WATERLINES[:3])
    if requested is not None:
        unexplained = requested - sum(kinds.values())
        kinds[Kind.UNEXPLAINED] = kinds.get(Kind.UNEXPLAINED, 0) + unexplained
    if requested is not None and allocated is not None:
        kinds[Kind.ROUNDING] = allocated - requested
    if allocated is not None and reserved is not None:
        kinds[Kind.CACHE] = reserved - allocated
    return kinds


def _exact(amount: Amount | None) -> int | None:
    return amount if isinstance(amount, int) else None


def _kinds(a: dict[Kind, int], b: dict[Kind, int]) -> tuple[KindDifference, ...]:
    """Kind by kind, on both sides."""
    kinds = [kind for kind in Kind if kind in a or kind in b]
    return tuple(KindDifference(kind, _held(kind, a, b), _held(kind, b, a)) for kind in kinds)


def _held(kind: Kind, here: dict[Kind, int], there: dict[Kind, int]) -> int | None:
    """What a side holds of a kind: 0 without items, unless what it leaves unexplained could be it."""
    told_by_counters = (Kind.UNEXPLAINED, Kind.ROUNDING, Kind.CACHE)
    if kind in here or kind in told_by_counters:
        return here.get(kind)
    unexplained = here.get(Kind.UNEXPLAINED, 0)
    return None if unexplained and unexplained >= there[kind] else 0


def _peak(a: Ledger, b: Ledger) -> PeakComparison:
    at_a, at_b = a.peak.moment, b.peak.moment
    totals_a, totals_b = _totals(a.peak), _totals(b.peak)
    known = [waterline for waterline in WATERLINES if waterline in totals_a or waterline in totals_b]
    return PeakComparison(
        a=at_a,
        b=at_b,
        scored=at_a.phase == at_b.phase and min(at_a.step, STEADY_STEP) == min(at_b.step, STEADY_STEP),
        kinds=_kinds(_kinds_at(a, at_a, totals_a), _kinds_at(b, at_b, totals_b)),
        readings=tuple(ReadingDifference(name, "peak", totals_a.get(name), totals_b.get(name)) for name in known),
        holdings=differing_at_peak(a, b),
    )


def _totals(peak: Peak) -> dict[Waterline, Amount]:
    totals: dict[Waterline, Amount | None] = {
        "requested": peak.requested_bytes,
        "allocated": peak.allocated_bytes,
        "reserved": peak.reserved_bytes,
        "device": peak.device_bytes,
    }
    return {waterline: n_bytes for waterline, n_bytes in totals.items() if n_bytes is not None}


def _counters(a: Ledger, b: Ledger) -> tuple[CounterDifference, ...]:
    names = sorted(a.counters.keys() | b.counters.keys())
    return tuple(CounterDifference(name, a.counters.get(name), b.counters.get(name)) for name in names)
