"""The settings of the process that a snapshot was made in, and how settings are named.

It knows what a snapshot says of them, and nothing of what they do.
"""

from typing import NamedTuple

from msgspec import structs

from qmem.allocator import AllocatorSettings, parse_settings
from qmem.allocator.rounding import N_BUCKETS
from qmem.allocator.settings import UNLIMITED
from qmem.errors import UsageError
from qmem.snapshot.records import NO_LIMIT, Settings
from qmem.units import MIB


class Recorded(NamedTuple):
    """Settings, and sentences on what is not known of them."""

    settings: AllocatorSettings
    unknown: tuple[str, ...]


def recorded_settings(said: Settings | None) -> Recorded:
    """What the snapshot says: its fields where it has them, the text that was set for the rest."""
    if said is None:
        return Recorded(AllocatorSettings(), ("the snapshot does not say the allocator's settings: torch's defaults",))
    settings, unknown = AllocatorSettings(), []
    try:
        settings = parse_settings(said.alloc_conf)
    except UsageError as error:
        unknown.append(f"of the allocator settings {said.alloc_conf!r} only the fields are used: {error.message}")
    if said.garbage_collection_threshold > 0:
        unknown.append(
            "garbage_collection_threshold works with a memory fraction, which a snapshot does not say: other settings "
            "are replayed without it"
        )
    return Recorded(structs.replace(settings, **_fields(said)), tuple(unknown))


def _fields(said: Settings) -> dict[str, object]:
    size = said.max_split_size
    return {
        "expandable_segments": said.expandable_segments,
        "max_split_size": UNLIMITED if size == NO_LIMIT else min(max(size, 0), UNLIMITED),
        "garbage_collection_threshold": said.garbage_collection_threshold,
        "roundup_power2_divisions": _divisions(said.roundup_power2_divisions),
    }


def _divisions(by_mebibytes: dict[str, int]) -> tuple[int, ...]:
    """Steps by interval from 1 MiB on, which the snapshot names by its lower end in MiB."""
    divisions = [by_mebibytes.get(str(1 << bucket), 0) for bucket in range(N_BUCKETS)]
    return tuple(max(steps, 0) for steps in divisions)


def described(settings: AllocatorSettings) -> str:
    """As ``PYTORCH_CUDA_ALLOC_CONF`` would have it; ``default`` where nothing is set."""
    standard = AllocatorSettings()
    said = {
        "expandable_segments": settings.expandable_segments or None,
        "max_split_size_mb": _mebibytes(settings.max_split_size, standard.max_split_size),
        "max_non_split_rounding_mb": _mebibytes(settings.max_non_split_rounding, settings.large_segment_size),
        "garbage_collection_threshold": settings.garbage_collection_threshold or None,
        "roundup_power2_divisions": _steps(settings.roundup_power2_divisions),
        "large_segment_size_mb": _mebibytes(settings.large_segment_size, standard.large_segment_size),
        "per_process_memory_fraction": None if (part := settings.per_process_memory_fraction) == 1 else part,
    }
    return ",".join(f"{key}:{value}" for key, value in said.items() if value is not None) or "default"


def _mebibytes(n_bytes: int, standard: int) -> int | None:
    return None if n_bytes == standard else n_bytes // MIB


def _steps(divisions: tuple[int, ...]) -> str | None:
    if not any(divisions):
        return None
    if len(set(divisions)) == 1:
        return str(divisions[0])
    return "[" + ",".join(f"{1 << bucket}:{steps}" for bucket, steps in enumerate(divisions)) + "]"
