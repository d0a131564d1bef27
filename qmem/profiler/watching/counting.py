"""A meter for a run that is not to be slowed down: torch's counters at each closing, and a look at names when told.

It does not wait for the device: torch counts where it hands blocks out, not where the device uses them.
"""

from typing import Any

from qmem.profiler.meter import Counts, Meter
from qmem.profiler.protocol import Closed, Counter, Place, Shortage


class CountingMeter(Meter):
    """Reads counters at closings; tensors are named only where ``looks`` was set, and where memory ends.

    Attributes:
        looks: whether the next closing names tensors too.
    """

    looks = False

    def _tell_entered(self, place: Place) -> None:
        """Nobody follows the run."""

    def close(self) -> None:
        """Close the running phase, if one is."""
        if self.place is None:
            return
        bindings = _bindings()
        self._observe()
        bindings._cuda_resetPeakMemoryStats(bindings._cuda_getDevice())  # noqa: SLF001
        self.place = None

    def _observe(self, *, unfinished: bool = False, shortage: Shortage | None = None) -> None:
        if self.looks or unfinished:
            self.looks = False
            super()._observe(unfinished=unfinished, shortage=shortage)
        else:
            assert self.place is not None, "a phase is running"
            self.tell(_counted(self.place, nested_stats()))


def nested_stats() -> dict[str, Any]:
    """torch's counters as its bindings give them; ``torch.cuda.memory_stats`` takes five times as long."""
    bindings = _bindings()
    stats: dict[str, Any] = bindings._cuda_memoryStats(bindings._cuda_getDevice())  # noqa: SLF001
    return stats


def _bindings() -> Any:
    import torch  # noqa: PLC0415

    return torch._C  # noqa: SLF001


def _counted(place: Place, stats: dict[str, Any]) -> Closed:
    blocks = stats["allocation"]["all"]
    return Closed(
        place=place,
        tick=Counts(blocks["allocated"], blocks["freed"]).tick,
        requested=_counter(stats, "requested_bytes"),
        allocated=_counter(stats, "allocated_bytes"),
        reserved=_counter(stats, "reserved_bytes"),
        active=_counter(stats, "active_bytes"),
        device={},
        totals={"alloc_retries": stats["num_alloc_retries"], "ooms": stats["num_ooms"]},
        holdings=(),
        unnamed=(),
        looked=False,
    )


def _counter(stats: dict[str, Any], name: str) -> Counter:
    n_bytes = stats[name]["all"]
    return Counter(n_bytes["current"], n_bytes["peak"])
