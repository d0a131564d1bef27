"""What a snapshot says, ready to be shown: plain values, no machine behind them.

Bytes are integers; an event is a number in the device's history, ``-1`` its beginning.
"""

from typing import Literal

import msgspec

from qmem.snapshot.history import PrivatePool

When = Literal["peak", "out of memory", "end"]


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of the default pool: the highest ``allocated``, the last request that failed, or the last event.

    ``allocated`` counts blocks in use, those too that a stream still works on; ``reserved`` is what was recorded.
    """

    when: When
    event: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


class Use(msgspec.Struct, frozen=True):
    """How many allocations, and what they asked for."""

    count: int
    n_bytes: int


class Holder(msgspec.Struct, frozen=True):
    """Who holds memory: a line of Python, and what it holds by moment; nothing where it holds nothing."""

    where: str
    uses: dict[When, Use]


class SegmentUse(msgspec.Struct, frozen=True, kw_only=True):
    """A segment that is partly free, and what keeps it.  Of an expandable segment it is a run of mapped pages."""

    address: int
    n_bytes: int
    stream: int
    small: bool
    expandable: bool
    n_held: int
    allocated_bytes: int
    free_bytes: int
    largest_free_bytes: int
    kept_by: str


class Fragmentation(msgspec.Struct, frozen=True, kw_only=True):
    """Reserved and not allocated at a moment; ``whole_bytes`` lie in segments of which nothing is held."""

    when: When
    free_bytes: int
    whole_bytes: int
    largest_free_bytes: int
    segments: tuple[SegmentUse, ...]


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """The last request that failed.

    Attributes:
        n_failed: how many requests failed in the history.
        request_bytes: what was asked for, rounded as the allocator does.
        device_free_bytes: what the driver still had, by its own account.
        free_bytes, largest_free_bytes: reserved and not allocated, and the largest piece of it.
        missing_bytes: what the driver had too little of.
        fragmentation_bytes: the part of it that reserved and unallocated memory would have covered, in one piece.
        beyond_bytes: the part that would be missing even then.
        request_by: the line that asked.
    """

    event: int
    n_failed: int
    request_bytes: int
    device_free_bytes: int
    free_bytes: int
    largest_free_bytes: int
    missing_bytes: int
    fragmentation_bytes: int
    beyond_bytes: int
    request_by: str


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """The replay with the process's own settings beside what was recorded, in reserved bytes.

    Differences are the replay less the recording: of allocated bytes at the end, and of reserved bytes where that is
    largest.  ``first_difference_event`` is absent where every segment came out.
    """

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs."""
        return self.first_difference_event is None and not self.allocated_difference_bytes

    recorded_peak_bytes: int
    replayed_peak_bytes: int
    recorded_end_bytes: int
    replayed_end_bytes: int
    allocated_difference_bytes: int
    largest_difference_bytes: int
    first_difference_event: int | None


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The history under settings.

    Attributes:
        settings: as ``PYTORCH_CUDA_ALLOC_CONF`` has them.
        is_own: whether they are those of the process.
        peak_allocated_bytes, peak_reserved_bytes: the highest of the history.
        reserved_bytes: at its end.
        n_retries: how often cached memory was released to make room for a request.
        n_served: of the requests that failed in the process, how many are served; absent for its own settings.
        failed_event: where a request fails that was served in the process; the figures are those up to there.
    """

    settings: str
    is_own: bool
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    reserved_bytes: int
    n_retries: int
    n_served: int | None
    failed_event: int | None


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """The history itself.

    ``is_whole`` says that it begins before anything was reserved; ``begin_*`` are what was there already.
    ``n_contradictions`` counts events that could not have led to the end: such a history is not replayed.
    """

    n_events: int
    is_whole: bool
    begin_held_bytes: int
    begin_reserved_bytes: int
    n_contradictions: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a snapshot.

    Attributes:
        device: its index.
        devices: reserved bytes by device, all pools.
        settings: of the process.
        recording: the history; absent where none was recorded.
        moments: what is known of peak, out of memory and end, in the order of time.
        holders: the largest first.
        fragmentation: at the out-of-memory, or at the end.
        shortage: absent where nothing failed.
        fidelity, replays: absent and empty where there is nothing to replay.
        capacity_bytes: what the default pool could have had when a request failed; absent where none did.
        private_pools: memory apart, in none of the figures above.
        assumptions, warnings: sentences.
    """

    device: int
    devices: dict[int, int]
    settings: str
    recording: Recording | None
    moments: tuple[Moment, ...]
    holders: tuple[Holder, ...]
    fragmentation: Fragmentation
    shortage: Shortage | None
    fidelity: Fidelity | None
    replays: tuple[Replayed, ...]
    capacity_bytes: int | None
    private_pools: tuple[PrivatePool, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
