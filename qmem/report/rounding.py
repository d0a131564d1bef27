"""Rounding that keeps sums: printed parts add up to their printed total.  It knows nothing of memory.

A printed amount is a whole number of ``unit / scale``: thousandths of a GiB, hundredths of a GB.
"""

from collections.abc import Sequence

from qmem.ledger import Interval


def to_units(amount: int, unit: int, scale: int) -> int:
    """``amount`` in whole ``unit / scale``, the nearest one (halves upwards), in integers only."""
    return (2 * amount * scale + unit) // (2 * unit)


def share_units(parts: Sequence[int], unit: int, scale: int, total_units: int) -> list[int]:
    """Each part in whole ``unit / scale``, adding up to ``total_units``, which is their sum rounded up or down.

    The largest-remainder method: every part is rounded down, and the units still missing go to the parts with the
    largest remainders.  Each part is then off by less than a unit.
    """
    units = [part * scale // unit for part in parts]
    missing = total_units - sum(units)
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] * scale % unit, reverse=True)
    for index in by_remainder[:missing]:
        units[index] += 1
    return units


def share_interval_units(parts: Sequence[Interval], unit: int, scale: int) -> list[Interval]:
    """Each interval in whole ``unit / scale``, so that both ends add up to the rounded ends of their sum.

    A part without doubt keeps one number at both ends.
    """
    low_total = to_units(sum(part.low for part in parts), unit, scale)
    high_total = to_units(sum(part.high for part in parts), unit, scale)
    lows = share_units([part.low for part in parts], unit, scale, low_total)
    widths = share_units([part.high - part.low for part in parts], unit, scale, high_total - low_total)
    return [Interval(low, low + width) for low, width in zip(lows, widths, strict=True)]
