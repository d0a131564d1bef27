"""From a snapshot to its answer: walk the history, replay it, look at its moments, replay it with other settings.

It owns the order of the questions and the sentences on what is not known; each answer is made elsewhere.
"""

from collections.abc import Iterator, Sequence

from msgspec import structs

from qmem.allocator import AllocatorSettings, warnings
from qmem.errors import UsageError
from qmem.snapshot.answer import Answer, Fidelity, Recording, Replayed
from qmem.snapshot.frames import By, Holders
from qmem.snapshot.history import History
from qmem.snapshot.moments import by_holder, looks
from qmem.snapshot.records import Snapshot
from qmem.snapshot.rerun import Limits, Rerun, n_retries, run_as_recorded, run_with
from qmem.snapshot.settings import described, recorded_settings
from qmem.snapshot.shortage import Capacity, capacity, shortage
from qmem.units import format_bytes


def examine(
    snapshot: Snapshot,
    *,
    device: int | None = None,
    alternatives: Sequence[AllocatorSettings] = (),
    device_total: int | None = None,
    by: By = "line",
) -> Answer:
    """What a device's memory was held by, and what would have become of it under other settings.

    ``device`` is by default the one with the most reserved; ``device_total`` its memory in bytes, of which a memory
    fraction is.  The process's settings with expandable segments turned round are always among the alternatives.

    Raises:
        UsageError: the snapshot is empty, or has no such device.
    """
    device = _chosen(snapshot, device)
    history, holders = History(snapshot, device), Holders(by)
    settings, unknown = recorded_settings(snapshot.settings)
    own = run_as_recorded(history, settings) if history.can_be_replayed else None
    seen = looks(history, own, holders)
    failed = next((look for look in seen if look.moment.when == "out of memory"), None)
    short = shortage(history, failed, settings, holders) if failed else None
    room = capacity(history, short, failed.moment.reserved_bytes if failed else 0, history.peak_reserved_bytes)
    limits = Limits(capacity=room.n_bytes, device_total=device_total)
    others = _distinct(settings, alternatives) if own else []
    return Answer(
        device=device,
        devices=reserved_by_device(snapshot),
        settings=described(settings),
        recording=_recording(history),
        moments=tuple(look.moment for look in seen),
        holders=by_holder(seen),
        fragmentation=(failed or seen[-1]).fragmentation,
        shortage=short,
        fidelity=_fidelity(history, own) if own else None,
        replays=tuple(_replays(history, settings, own, others, limits)) if own else (),
        capacity_bytes=room.n_bytes,
        private_pools=history.private,
        assumptions=tuple(_assumptions(history, unknown, room, own)),
        warnings=tuple(_warnings(history, others)),
    )


def reserved_by_device(snapshot: Snapshot) -> dict[int, int]:
    """Bytes of all pools, of the devices that have memory or a history."""
    traced = [device for device, trace in enumerate(snapshot.device_traces) if trace]
    reserved = dict.fromkeys(sorted({*traced, *(segment.device for segment in snapshot.segments)}), 0)
    for segment in snapshot.segments:
        reserved[segment.device] += segment.total_size
    return reserved


def _chosen(snapshot: Snapshot, device: int | None) -> int:
    reserved = reserved_by_device(snapshot)
    if not reserved:
        raise UsageError(
            "the snapshot is empty: no segments and no history",
            hint="call torch.cuda.memory._record_memory_history() before the step and dump after it",
        )
    if device is None:
        return max(reserved, key=reserved.__getitem__)
    if device not in reserved:
        has = ", ".join(map(str, reserved))
        raise UsageError(f"the snapshot has nothing of device {device}", hint=f"it has device {has}")
    return device


def _distinct(own: AllocatorSettings, alternatives: Sequence[AllocatorSettings]) -> list[AllocatorSettings]:
    """Other settings than the process's, each once; expandable segments turned round come first."""
    turned = structs.replace(own, expandable_segments=not own.expandable_segments)
    return [settings for settings in dict.fromkeys((turned, *alternatives)) if settings != own]


def _recording(history: History) -> Recording | None:
    if not history.n_recorded:
        return None
    return Recording(
        n_events=history.n_recorded,
        is_whole=history.is_whole,
        begin_held_bytes=sum(held.n_bytes for held in history.begin.held.values()),
        begin_reserved_bytes=history.begin.reserved_bytes,
        n_contradictions=history.n_contradictions,
    )


def _fidelity(history: History, own: Rerun) -> Fidelity:
    return Fidelity(
        recorded_peak_bytes=history.peak_reserved_bytes,
        replayed_peak_bytes=own.peak_reserved_bytes,
        recorded_end_bytes=history.end.reserved_bytes,
        replayed_end_bytes=own.reserved_bytes,
        allocated_difference_bytes=own.allocated_bytes - sum(segment.active_size for segment in history.final),
        largest_difference_bytes=own.largest_difference,
        first_difference_event=own.first_difference,
    )


def _replays(
    history: History, settings: AllocatorSettings, own: Rerun, others: Sequence[AllocatorSettings], limits: Limits
) -> Iterator[Replayed]:
    yield structs.replace(_replayed(settings, own, None), n_retries=n_retries(history.entries))
    for other in others:
        run = run_with(history, other, limits)
        yield _replayed(other, run, sum(run.served.values()))


def _replayed(settings: AllocatorSettings, run: Rerun, n_served: int | None) -> Replayed:
    return Replayed(
        settings=described(settings),
        is_own=n_served is None,
        peak_allocated_bytes=run.peak_allocated_bytes,
        peak_reserved_bytes=run.peak_reserved_bytes,
        reserved_bytes=run.reserved_bytes,
        n_retries=run.n_retries,
        n_served=n_served,
        failed_event=run.failed,
    )


def _assumptions(history: History, unknown: tuple[str, ...], room: Capacity, own: Rerun | None) -> Iterator[str]:
    yield from unknown
    if own is None:
        return
    yield f"the other settings have {room.because}"
    if not history.is_whole:
        held = format_bytes(sum(held.n_bytes for held in history.begin.held.values()))
        reserved = format_bytes(history.begin.reserved_bytes)
        yield (
            f"the history begins with {held} held and {reserved} reserved; the other settings begin with what was "
            "held, packed without holes, so that their figures may be too low"
        )


def _warnings(history: History, others: Sequence[AllocatorSettings]) -> Iterator[str]:
    if not history.n_recorded:
        yield (
            "no history was recorded: only the end is known; call torch.cuda.memory._record_memory_history() before "
            "the step"
        )
    elif history.n_contradictions:
        yield (
            f"{history.n_contradictions:,} of {history.n_recorded:,} events contradict the segments at the end, as "
            "where actions were skipped (skip_actions): only the end is known"
        )
    for settings in others:
        yield from warnings(settings)
