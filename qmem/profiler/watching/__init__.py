"""Watches a training run that qmem did not build: its phases by hooks, its counters, and a ledger at the end.

Nothing of torch is imported before a run is watched.
"""

from qmem.profiler.watching.watch import Watch

__all__ = ["Watch"]
