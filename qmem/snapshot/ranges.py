"""Sets of addresses, kept as ranges that do not touch.  It knows nothing of what lies there."""

from bisect import bisect_left, bisect_right


class Ranges:
    """Ranges in order; ``starts[i]`` to ``ends[i]``, the end excluded."""

    __slots__ = ("ends", "n_bytes", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.n_bytes = 0

    def copy(self) -> "Ranges":
        """A set that goes its own way."""
        twin = Ranges()
        twin.starts, twin.ends, twin.n_bytes = self.starts[:], self.ends[:], self.n_bytes
        return twin

    def __iter__(self) -> "zip[tuple[int, int]]":
        return zip(self.starts, self.ends, strict=True)

    def holds(self, address: int) -> bool:
        """Whether an address is in the set."""
        at = bisect_right(self.starts, address) - 1
        return at >= 0 and address < self.ends[at]

    def add(self, start: int, n_bytes: int) -> bool:
        """Enter a range; whether nothing of it was there."""
        end = start + n_bytes
        first, last = bisect_left(self.ends, start), bisect_right(self.starts, end)
        inside = sum(max(min(end, self.ends[at]) - max(start, self.starts[at]), 0) for at in range(first, last))
        if first < last:
            start, end = min(start, self.starts[first]), max(end, self.ends[last - 1])
        self.starts[first:last], self.ends[first:last] = [start], [end]
        self.n_bytes += n_bytes - inside
        return not inside

    def remove(self, start: int, n_bytes: int) -> bool:
        """Take a range out; whether all of it was there."""
        end = start + n_bytes
        first, last = bisect_right(self.ends, start), bisect_left(self.starts, end)
        touched = list(zip(self.starts[first:last], self.ends[first:last], strict=True))
        left = [(a, b) for low, high in touched for a, b in ((low, min(high, start)), (max(low, end), high)) if a < b]
        removed = sum(high - low for low, high in touched) - sum(b - a for a, b in left)
        self.starts[first:last], self.ends[first:last] = [a for a, _ in left], [b for _, b in left]
        self.n_bytes -= removed
        return removed == n_bytes
