"""The meter: closes one phase, reads every counter, names what is alive, and opens the next phase.

Readings are taken after a synchronization, and torch's peaks are reset there, so a phase's peak is its own.
It knows torch's counters and nothing of how a step is run.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from qmem.ledger import Phase
from qmem.profiler.device import DeviceCounters
from qmem.profiler.names import Named, fold
from qmem.profiler.protocol import Block, Closed, Counter, Entered, Event, Holding, Place, Shortage


class Alive(NamedTuple):
    """The allocator's blocks in use, by address, and the tensors that have a name."""

    blocks: dict[int, Block]
    named: list[Named]


class Counts(NamedTuple):
    """How many blocks torch has handed out and taken back so far."""

    allocated: int
    freed: int

    @property
    def tick(self) -> int:
        """Events so far."""
        return self.allocated + self.freed


class Meter:
    """Follows the phases of a job on one device.

    Attributes:
        tell: where events go.
        sources: what gives the tensors that have a name, in the order in which they came to be.
        n_layers: how many layers a series runs over.
        closes: called in place of telling, while a step is traced: the place, the events so far, the named tensors.
        was_cut_off: memory ended once.
    """

    def __init__(self, tell: Callable[[Event], None], device: DeviceCounters, n_layers: int) -> None:
        self.tell, self.device, self.n_layers = tell, device, n_layers
        self.sources: list[Callable[[], Iterable[Named]]] = []
        self.closes: Callable[[Place, Counts, list[Named]], None] | None = None
        self.place: Place | None = None
        self.was_cut_off = False

    def enter(self, phase: Phase, step: int | None = None, micro_step: int = 1) -> None:
        """Close the running phase and begin another; without a step, one of the same micro-step."""
        if step is None:
            assert self.place is not None, "a phase without a step follows another"
            step, micro_step = self.place.step, self.place.micro_step
        place = Place(step, micro_step, phase)
        if place == self.place:
            return
        self.close()
        self.place = place
        self._tell_entered(place)

    def _tell_entered(self, place: Place) -> None:
        stats = memory_stats()
        self.tell(Entered(place=place, allocated=stats["allocated_bytes.all.current"], peak=peak_so_far(stats)))

    def close(self) -> None:
        """Close the running phase, if one is."""
        if self.place is None:
            return
        import torch  # noqa: PLC0415

        torch.cuda.synchronize()
        self._observe()
        torch.cuda.reset_peak_memory_stats()
        self.place = None

    def cut_off(self, shortage: Shortage | None = None) -> None:
        """Read the counters where a phase ends in out of memory, once; the device is not asked to finish its work."""
        if self.place is not None and not self.was_cut_off:
            self.was_cut_off = True
            self._observe(unfinished=True, shortage=shortage)

    def _observe(self, *, unfinished: bool = False, shortage: Shortage | None = None) -> None:
        assert self.place is not None, "a phase is running"
        stats, named = memory_stats(), self.named()
        counts = counts_of(stats)
        if self.closes is not None:
            self.closes(self.place, counts, named)
            if not unfinished:
                return
        alive = Alive(active_blocks(), named)
        self.tell(
            Closed(
                place=self.place,
                tick=counts.tick,
                requested=counter_of(stats, "requested"),
                allocated=counter_of(stats, "allocated"),
                reserved=counter_of(stats, "reserved"),
                active=counter_of(stats, "active"),
                device=self.device.read(),
                resident=self.device.resident((one.address, one.n_bytes) for one in named if one.managed),
                totals={"alloc_retries": stats["num_alloc_retries"], "ooms": stats["num_ooms"]},
                holdings=self.holdings(alive),
                unnamed=unnamed_blocks(alive),
                unfinished=unfinished,
                shortage=shortage,
            )
        )

    def named(self) -> list[Named]:
        """The tensors that have a name.  No mode that watches torch's functions sees them looked at."""
        import torch  # noqa: PLC0415

        with torch._C.DisableTorchFunction():  # noqa: SLF001
            return [named for source in self.sources for named in source()]

    def holdings(self, alive: Alive) -> tuple[Holding, ...]:
        """The named tensors with their blocks; one storage counts once."""
        seen: set[int] = set()
        pairs = []
        for named in alive.named:
            block = alive.blocks.get(named.address)
            if named.address not in seen and (named.managed or block is not None):
                seen.add(named.address)
                pairs.append((named, block.block_bytes if block else 0))
        return fold(pairs, self.n_layers)


def memory_stats() -> dict[str, int]:
    """The allocator's counters of the current device."""
    import torch  # noqa: PLC0415

    return torch.cuda.memory_stats()


def counts_of(stats: dict[str, int]) -> Counts:
    """The counts of blocks among torch's counters."""
    return Counts(stats["allocation.all.allocated"], stats["allocation.all.freed"])


def counter_of(stats: dict[str, int], name: str) -> Counter:
    """The counter of bytes that torch calls ``NAME_bytes``."""
    return Counter(stats[f"{name}_bytes.all.current"], stats[f"{name}_bytes.all.peak"])


def peak_so_far(stats: dict[str, int]) -> int:
    """The most that was allocated since the last closing."""
    return stats["allocated_bytes.all.peak"]


def active_blocks() -> dict[int, Block]:
    """The blocks that tensors hold, by address."""
    return {
        block["address"]: Block(block["address"], block["requested_size"], block["size"])
        for segment in _segments()
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }


def _segments() -> list[dict[str, Any]]:
    """The allocator's segments, without the history where torch can leave it out (2.10 and later)."""
    import torch  # noqa: PLC0415

    try:
        return torch.cuda.memory_snapshot(include_traces=False)  # type: ignore[no-any-return,no-untyped-call]
    except TypeError:
        return torch.cuda.memory_snapshot()  # type: ignore[no-any-return,no-untyped-call]


def unnamed_blocks(alive: Alive) -> tuple[Block, ...]:
    """The blocks whose tensor has no name."""
    addresses = {named.address for named in alive.named}
    return tuple(block for address, block in alive.blocks.items() if address not in addresses)
