"""Two numbers that stand beside each other, and what one is more than the other."""

from typing import Literal

import msgspec

from qmem.ledger.kinds import Kind, Waterline
from qmem.ledger.ledger import Interval

Amount = int | Interval
Measure = Literal["current", "peak"]


def change(a: Amount | None, b: Amount | None) -> Amount | None:
    """``b`` less ``a``: an interval where one of them has doubt, absent where one of them is."""
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return b - a
    low_a, high_a = ends(a)
    low_b, high_b = ends(b)
    return Interval(low_b - high_a, high_b - low_a)


def ends(amount: Amount) -> tuple[int, int]:
    """Both ends of an amount, the same where it has no doubt."""
    return (amount, amount) if isinstance(amount, int) else (amount.low, amount.high)


class KindDifference(msgspec.Struct, frozen=True):
    """Bytes of one kind on the GPU at a moment; absent where a ledger cannot tell.

    *Rounding* is allocated less requested and *cache* reserved less allocated; *unexplained* is what the items leave
    of the requested total, and stands for itself.
    """

    kind: Kind
    a: int | None
    b: int | None

    @property
    def change(self) -> Amount | None:
        """``b`` less ``a``."""
        return change(self.a, self.b)


class ReadingDifference(msgspec.Struct, frozen=True):
    """What the counters of both show at one waterline; ``current`` at a moment or the ``peak`` of a phase."""

    waterline: Waterline
    measure: Measure
    a: Amount | None
    b: Amount | None

    @property
    def change(self) -> Amount | None:
        """``b`` less ``a``."""
        return change(self.a, self.b)


class CounterDifference(msgspec.Struct, frozen=True):
    """A number of the whole run; absent where a run did not count it.  Bytes, unless the name says otherwise."""

    name: str
    a: int | None
    b: int | None

    @property
    def change(self) -> int | None:
        """``b`` less ``a``."""
        return None if self.a is None or self.b is None else self.b - self.a


Number = KindDifference | ReadingDifference
