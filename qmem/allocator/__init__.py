"""The caching allocator: trace in; rounding, cache, segments and out of memory out."""

from qmem.allocator.allocator import CachingAllocator, OutOfMemory
from qmem.allocator.replay import Failure, PhaseUse, Replay, replay
from qmem.allocator.rounding import round_to_grain
from qmem.allocator.settings import AllocatorSettings, parse_settings, warnings

__all__ = [
    "AllocatorSettings", "CachingAllocator", "Failure", "OutOfMemory", "PhaseUse", "Replay", "parse_settings", "replay",
    "round_to_grain", "warnings",
]  # fmt: skip
