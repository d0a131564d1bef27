"""Holdings by owner, so that two instruments' names for the same tensors meet.

One instrument writes a series (``model.layers.{0..39}.x``, or ``model.layers.*.x`` where it runs over some layers),
another every name.  Names are compared one by one where both say them, and as a series together where one does not.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import structs

from qmem.ledger.kinds import Kind
from qmem.ledger.ledger import Item, Ledger, Moment, Space
from qmem.ledger.series import number_ranges

_RANGE = re.compile(r"(?<=\.)\{(\d+(?:\.\.\d+)?(?:,\d+(?:\.\.\d+)?)*)\}(?=\.)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_ANY = "*"

NAMED = (Kind.WEIGHTS, Kind.LORA_AND_ADAMW)
"""Headings whose owners are names of tensors in every instrument; other owners are an instrument's own words."""


class OwnerDifference(msgspec.Struct, frozen=True):
    """What one owner, or a series of equal ones, holds in each ledger at a moment; 0 where a ledger has no such owner.

    ``when`` names the moment where it is not the peak: the closing at which the owner differs most.
    """

    owner: str
    kind: Kind
    space: Space
    a: int
    b: int
    when: str = ""

    @property
    def change(self) -> int:
        """``b`` less ``a``."""
        return self.b - self.a


class Series(NamedTuple):
    """Owners that differ in one number only."""

    pattern: str
    kind: Kind
    space: Space


Members = dict[int | None, int]
"""Bytes by number; ``None`` holds what is not told apart."""
Holdings = dict[Series, Members]


def differing_at_peak(a: Ledger, b: Ledger) -> tuple[OwnerDifference, ...]:
    """The owners that differ in what they request on the GPU at the two peaks, largest difference first."""
    of_a, of_b = (
        _collected([_Shared(item) for item in ledger.at(ledger.peak.moment) if item.kind.waterline == "requested"])
        for ledger in (a, b)
    )
    found = [row for series in of_a.keys() | of_b.keys() for row in _differing(series, of_a, of_b)]
    return tuple(sorted(found, key=_by_size))


def differing_residents(a: Ledger, b: Ledger, closings: Sequence[tuple[Moment, Moment]]) -> tuple[OwnerDifference, ...]:
    """The named tensors that differ at a closing, wherever they lie, each at the closing where it differs most."""
    named_a, named_b = ([_Shared(item) for item in ledger.items if _is_named(item)] for ledger in (a, b))
    most: dict[Series, list[OwnerDifference]] = {}
    for at_a, at_b in closings:
        of_a = _collected([shared for shared in named_a if shared.item.alive(at_a)])
        of_b = _collected([shared for shared in named_b if shared.item.alive(at_b)])
        for series in of_a.keys() | of_b.keys():
            rows = [structs.replace(row, when=str(at_a)) for row in _differing(series, of_a, of_b)]
            if _size(rows) > _size(most.get(series, [])):
                most[series] = rows
    return tuple(sorted((row for rows in most.values() for row in rows), key=_by_size))


def _size(rows: list[OwnerDifference]) -> int:
    return sum(abs(row.change) for row in rows)


def _is_named(item: Item) -> bool:
    on_gpu = item.space == "gpu"
    return not on_gpu or item.kind.heading in NAMED or item.kind is Kind.MODULE_BUFFER


def _by_size(row: OwnerDifference) -> tuple[int, str, str, str, int]:
    return -abs(row.change), row.owner, row.kind.value, row.space, min(row.a, row.b)


class _Shared:
    """An item with its series, and the numbers that share its bytes equally."""

    __slots__ = ("item", "numbers", "series")

    def __init__(self, item: Item) -> None:
        pattern, self.numbers = _numbered(item)
        self.item, self.series = item, Series(pattern, item.kind, item.space)


def _collected(holdings: Iterable[_Shared]) -> Holdings:
    collected: Holdings = {}
    for shared in holdings:
        members = collected.setdefault(shared.series, {})
        each = shared.item.n_bytes // len(shared.numbers)
        for number in shared.numbers:
            members[number] = members.get(number, 0) + each
    return collected


def _numbered(item: Item) -> tuple[str, Sequence[int | None]]:
    """The owner with its first number or range taken out, and the numbers that it stands for."""
    written = _RANGE.search(item.owner)
    if written is not None:
        return _RANGE.sub(_ANY, item.owner, count=1), _expanded(written[1], item) or [None]
    number = _NUMBER.search(item.owner)
    if number is not None:
        return _NUMBER.sub(_ANY, item.owner, count=1), [int(number[0])]
    return item.owner, [None]


def _expanded(ranges: str, item: Item) -> list[int]:
    """``0..2,5`` as ``[0, 1, 2, 5]``; nothing where the item's tensors cannot be shared out equally among them."""
    runs = [part.partition("..") for part in ranges.split(",")]
    spans = [range(int(first), int(last or first) + 1) for first, _, last in runs]
    n_numbers = sum(map(len, spans))
    if not n_numbers or item.count % n_numbers or item.n_bytes % n_numbers:
        return []
    return [number for span in spans for number in span]


def _differing(series: Series, of_a: Holdings, of_b: Holdings) -> list[OwnerDifference]:
    """Number by number where both sides tell the numbers apart, else together; equal differences on one line."""
    a, b = of_a.get(series, {}), of_b.get(series, {})
    if None in a or None in b:
        both = sum(a.values()), sum(b.values())
        return [OwnerDifference(*series, *both)] if both[0] != both[1] else []
    alike: dict[tuple[int, int], list[int]] = {}
    for number in sorted(number for number in a.keys() | b.keys() if number is not None):
        pair = a.get(number, 0), b.get(number, 0)
        if pair[0] != pair[1]:
            alike.setdefault(pair, []).append(number)
    return [_together(series, numbers, pair) for pair, numbers in alike.items()]


def _together(series: Series, numbers: list[int], pair: tuple[int, int]) -> OwnerDifference:
    owner = series.pattern.replace(_ANY, _written(numbers), 1)
    return OwnerDifference(owner, series.kind, series.space, pair[0] * len(numbers), pair[1] * len(numbers))


def _written(numbers: list[int]) -> str:
    """``3``, ``{0..39}``, ``{0,2..5}``: sorted numbers with runs written by their ends."""
    if len(numbers) == 1:
        return str(numbers[0])
    return f"{{{number_ranges(numbers)}}}"
