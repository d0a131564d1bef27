"""The device as the allocator sees it: so many bytes, and addresses that are never given twice.

It owns the books of what the driver handed out (reserved memory) and knows nothing of blocks.

Every segment lies behind all earlier ones, so that the order of addresses is the order of creation.  That is the order
in which torch 2.14.1 compares blocks of one size (a counter that a block inherits from its segment, pytorch#183591), so
where the driver really puts a segment changes nothing.  Earlier versions compare the driver's addresses.
"""

from typing import Literal, NamedTuple

Action = Literal["segment_alloc", "segment_free", "segment_map", "segment_unmap"]


class SegmentEvent(NamedTuple):
    """A call to the driver, named as in torch's memory history."""

    action: Action
    address: int
    n_bytes: int


class Device:
    """What the driver has handed out.

    Attributes:
        capacity: bytes that the allocator can have at most; absent where there is no limit.
        total: the device's memory, of which an expandable segment reserves nine eighths of address space.
        reserved_bytes: what is handed out (``torch.cuda.memory_reserved``).
        peak_reserved_bytes: its highest value.
        history: the calls so far.
    """

    __slots__ = ("_end", "capacity", "history", "peak_reserved_bytes", "reserved_bytes", "total")

    def __init__(self, capacity: int | None, total: int) -> None:
        self.capacity = capacity
        self.total = total
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.history: list[SegmentEvent] = []
        self._end = 0

    def has(self, n_bytes: int) -> bool:
        """Whether the driver can hand out ``n_bytes`` more."""
        return self.capacity is None or self.reserved_bytes + n_bytes <= self.capacity

    def new_addresses(self, n_bytes: int) -> int:
        """The start of a range of addresses behind all others."""
        start = self._end
        self._end += n_bytes
        return start

    def reserve(self, action: Action, address: int, n_bytes: int) -> None:
        """Enter memory that the driver hands out."""
        self.reserved_bytes += n_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        self.history.append(SegmentEvent(action, address, n_bytes))

    def release(self, action: Action, address: int, n_bytes: int) -> None:
        """Enter memory that goes back to the driver."""
        self.reserved_bytes -= n_bytes
        self.history.append(SegmentEvent(action, address, n_bytes))
