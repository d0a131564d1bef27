"""The trace: the ordered events of a job, compact; what the allocator replays and the ledger is settled from."""

from typing import NamedTuple

from qmem.ledger.kinds import Kind
from qmem.ledger.ledger import Moment, Phase


class Label(NamedTuple):
    """What an allocation is: its kind, its owner (tensor name, or module role) and the reason of its size."""

    kind: Kind
    owner: str
    because: str


class Mark(NamedTuple):
    """A phase begins before event ``event``.

    ``empties_cache`` says that the program calls ``torch.cuda.empty_cache()`` there.
    """

    event: int
    step: int
    micro_step: int
    phase: Phase
    empties_cache: bool = False


class Trace:
    """Events in order.

    Attributes:
        sizes: requested bytes of each allocation; an allocation's handle is its index here.
        labels: per handle, the index of its label in ``label_table``.
        label_table: the distinct labels.
        events: a handle where it is allocated, ``~handle`` (negative) where it is freed.
        marks: the phases, in order.
    """

    __slots__ = ("events", "label_table", "labels", "marks", "sizes")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.labels: list[int] = []
        self.label_table: list[Label] = []
        self.events: list[int] = []
        self.marks: list[Mark] = []

    def mark_at(self, event: int) -> Mark:
        """The phase that event number ``event`` belongs to."""
        return next(mark for mark in reversed(self.marks) if mark.event <= event)

    def moment(self, event: int) -> Moment:
        """The moment right after event number ``event``."""
        mark = self.mark_at(event)
        return Moment(mark.step, mark.micro_step, mark.phase, event)
