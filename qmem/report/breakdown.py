"""The rows of a ledger at its peak, and their printed amounts.

It owns which row a holding stands in, at which waterline the row counts, and the rounding by which printed rows add
up to printed totals.  It knows nothing of terminals.
"""

from itertools import pairwise

import msgspec

from qmem.ledger import HEADINGS, Interval, Kind, Ledger, Peak, Waterline
from qmem.report.rounding import share_units, to_units
from qmem.units import GIB

ROW_SCALE = 1000
"""Rows are printed in thousandths of a GiB, about 1 MiB."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line under a heading.

    Attributes:
        kind: what it is for; ``heading`` is the branch it stands under.
        label: what the line is called.
        waterline: the lowest waterline that counts it.
        n_bytes: the exact bytes.
        units: the printed amount in thousandths of a GiB, chosen so that rows add up.
    """

    kind: Kind
    label: str
    waterline: Waterline
    n_bytes: Interval
    units: Interval


class Total(msgspec.Struct, frozen=True):
    """What a waterline shows at the peak, exactly and as printed."""

    waterline: Waterline
    n_bytes: Interval
    units: Interval


class Breakdown(msgspec.Struct, frozen=True):
    """The rows of a ledger at its peak and the totals that are known, lowest waterline first."""

    rows: tuple[Row, ...]
    totals: tuple[Total, ...]

    def under(self, heading: Kind) -> tuple[Row, ...]:
        """The rows of one heading."""
        return tuple(row for row in self.rows if row.kind.heading is heading)

    def headings(self) -> tuple[Kind, ...]:
        """The headings that have rows, in the tree's order."""
        return tuple(heading for heading in HEADINGS if self.under(heading))

    def bytes_under(self, *headings: Kind) -> Interval:
        """Exact bytes of some headings together."""
        return _sum([row.n_bytes for row in self.rows if row.kind.heading in headings])

    def units_under(self, heading: Kind) -> Interval:
        """The printed amount of a heading: the sum of its printed rows."""
        return _sum([row.units for row in self.under(heading)])

    def total(self, waterline: Waterline) -> Total | None:
        """The total at one waterline, absent where the instrument cannot tell it."""
        return next((total for total in self.totals if total.waterline == waterline), None)


def breakdown(ledger: Ledger) -> Breakdown:
    """The rows of the ledger's peak.

    Rounding is allocated less requested, cache is reserved less allocated, context is device less reserved and
    paged: that is what those words mean.  What the requested items leave of the requested total is *unexplained*.
    """
    totals = _totals(ledger.peak)
    by_waterline = {total.waterline: total for total in totals}
    rows = [*_requested_rows(ledger, by_waterline["requested"]), *_steps_up(totals), *_outside_torch(ledger, totals)]
    order = list(Kind)
    return Breakdown(tuple(sorted(rows, key=lambda row: order.index(row.kind))), totals)


def _totals(peak: Peak) -> tuple[Total, ...]:
    known: list[tuple[Waterline, Interval | None]] = [
        ("requested", _exactly(peak.requested_bytes)),
        ("allocated", _exactly(peak.allocated_bytes)),
        ("reserved", None if peak.reserved_bytes is None else _exactly(peak.reserved_bytes)),
        ("device", peak.device_bytes),
    ]
    return tuple(Total(waterline, n_bytes, _in_units(n_bytes)) for waterline, n_bytes in known if n_bytes is not None)


def _requested_rows(ledger: Ledger, total: Total) -> list[Row]:
    """What tensors asked for at the peak; a kind that is alive at other moments only stands with 0."""
    alive = ledger.by_kind(ledger.peak.moment)
    seen = {item.kind for item in ledger.items if item.space == "gpu" and item.kind.waterline == "requested"}
    parts = {kind: alive.get(kind, 0) for kind in Kind if kind in seen}
    unexplained = total.n_bytes.low - sum(parts.values())
    if unexplained:
        parts[Kind.UNEXPLAINED] = parts.get(Kind.UNEXPLAINED, 0) + unexplained
    units = share_units(list(parts.values()), GIB, ROW_SCALE, total.units.low)
    return [
        _row(kind, _label(kind, ledger), "requested", _exactly(n_bytes), _exactly(amount))
        for (kind, n_bytes), amount in zip(parts.items(), units, strict=True)
    ]


def _steps_up(totals: tuple[Total, ...]) -> list[Row]:
    """Rounding and cache: the steps from each of torch's waterlines to the next."""
    kinds: dict[Waterline, Kind] = {"allocated": Kind.ROUNDING, "reserved": Kind.CACHE}
    return [
        _row(kind, kind.label, upper.waterline, _less(upper.n_bytes, lower.n_bytes), _less(upper.units, lower.units))
        for lower, upper in pairwise(totals)
        if (kind := kinds.get(upper.waterline))
    ]


def _outside_torch(ledger: Ledger, totals: tuple[Total, ...]) -> list[Row]:
    """Paged state, and the context where the device's total is known.

    A counter that cannot tell resident pages from the context shows both in one row.
    """
    paged = Interval(0, ledger.paged_bytes)
    if totals[-1].waterline != "device":
        return [_paged_row(paged, _in_units(paged))] if ledger.paged_bytes else []
    device, below = totals[-1], totals[-2]
    outside = _less(device.n_bytes, below.n_bytes)
    outside_units = _less(device.units, below.units)
    what = "context" if below.waterline == "reserved" else "cache and context"
    width = outside.high - outside.low
    if not ledger.paged_bytes or width < ledger.paged_bytes:
        label = f"{what}, resident pages" if ledger.paged_bytes else what
        return [_row(Kind.CONTEXT, label, "device", outside, outside_units)]
    widths = [width - ledger.paged_bytes, ledger.paged_bytes]
    context_width, paged_width = share_units(widths, GIB, ROW_SCALE, outside_units.high - outside_units.low)
    context = Interval(outside.low, outside.high - ledger.paged_bytes)
    context_units = Interval(outside_units.low, outside_units.low + context_width)
    return [
        _row(Kind.CONTEXT, what, "device", context, context_units),
        _paged_row(paged, Interval(0, paged_width)),
    ]


def _paged_row(n_bytes: Interval, units: Interval) -> Row:
    return _row(Kind.OPTIMIZER_STATE, "optimizer state, paged", "device", n_bytes, units)


def _row(kind: Kind, label: str, waterline: Waterline, n_bytes: Interval, units: Interval) -> Row:
    return Row(kind=kind, label=label, waterline=waterline, n_bytes=n_bytes, units=units)


_LABELS = {
    Kind.WEIGHT_16BIT: "16-bit weights",
    Kind.WEIGHT_32BIT: "fp32 weights",
    Kind.ADAPTER: "adapters",
    Kind.GRADIENT: "gradients",
    Kind.OPTIMIZER_STATE: "optimizer state on the GPU",
    Kind.CHECKPOINT: "checkpoints",
    Kind.INTERMEDIATE: "intermediates",
    Kind.DEQUANTIZED: "dequantized weights",
    Kind.WORKSPACE: "workspaces",
    Kind.OPTIMIZER_TEMPORARY: "optimizer temporaries",
    Kind.MODULE_BUFFER: "module buffers",
    Kind.KEPT: "kept tensors",
}
_BASE_LABELS = {"nf4": "4-bit data", "fp4": "4-bit data", "int8": "8-bit data"}


def _label(kind: Kind, ledger: Ledger) -> str:
    """The row's name; what was posted to a heading itself is that heading's *other*."""
    if kind is Kind.BASE_WEIGHT:
        return "base weights" if ledger.watched else _BASE_LABELS.get(ledger.job.effective_quant, "base weights")
    if kind in HEADINGS and kind is not Kind.UNEXPLAINED:
        return f"other {kind.label}"
    return _LABELS.get(kind, kind.label)


def _in_units(n_bytes: Interval) -> Interval:
    return Interval(to_units(n_bytes.low, GIB, ROW_SCALE), to_units(n_bytes.high, GIB, ROW_SCALE))


def _less(upper: Interval, lower: Interval) -> Interval:
    """``upper`` less ``lower``, which has no doubt."""
    return Interval(upper.low - lower.low, upper.high - lower.low)


def _sum(parts: list[Interval]) -> Interval:
    return Interval(sum(part.low for part in parts), sum(part.high for part in parts))


def _exactly(amount: int) -> Interval:
    return Interval(amount, amount)
