"""What a ledger means for a GPU.  Later: the largest batch, sequence and rank, and what to change."""

from qmem.planner.verdict import Part, Verdict, verdict

__all__ = ["Part", "Verdict", "verdict"]
