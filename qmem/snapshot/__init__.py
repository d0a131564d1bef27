"""A torch memory snapshot: what held the memory, what was fragmentation, what other settings would have given."""

from qmem.snapshot.answer import Answer
from qmem.snapshot.examination import examine
from qmem.snapshot.reading import read_snapshot

__all__ = ["Answer", "examine", "read_snapshot"]
