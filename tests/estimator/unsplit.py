"""How many bytes a peak may have more than its tensors, rounded, without any error of the walk.

A free block above 1 MiB is handed out whole where at most 1 MiB of it would remain (``should_split`` of torch's
``CUDACachingAllocator.cpp``), and counts as allocated whole.  Expandable segments are always split.
"""

from qmem.allocator.rounding import SMALL_SIZE
from qmem.ledger import Ledger


def most_unsplit(ledger: Ledger) -> int:
    """Bytes that the ends of all blocks can have together at the peak of a ledger."""
    if ledger.job.expandable_segments:
        return 0
    alive = (item for item in ledger.at(ledger.peak.moment) if item.kind.waterline == "requested")
    return SMALL_SIZE * sum(item.count for item in alive if item.n_bytes > item.count * SMALL_SIZE)
