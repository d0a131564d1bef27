"""The profiler: builds the real model, runs real training steps in a process of its own, reads every counter.

``import qmem.profiler`` loads no torch; the libraries are imported in the worker process only.
"""

from qmem.profiler.profiling import profile

__all__ = ["profile"]
