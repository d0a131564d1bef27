"""Settings: what ``PYTORCH_CUDA_ALLOC_CONF`` (or ``PYTORCH_ALLOC_CONF``) says, read as torch 2.14.1 reads it.

It owns the syntax and the limits of the values, and knows nothing of how the allocator uses them.
Source: torch 2.14.1, ``c10/core/AllocatorConfig.h`` and ``c10/cuda/CUDAAllocatorConfig.h``, and calls of its parser.

Refused here although torch takes it: a number with a tail (of ``21.7`` and ``21GB`` torch reads 21, of ``-1``
18446744073709551615), a key that is given twice (the second counts), and anything but a comma after a value.
"""

import re
from collections.abc import Iterator

import msgspec

from qmem.allocator.rounding import LARGE_SEGMENT, MIN_LARGE, N_BUCKETS
from qmem.errors import UnsupportedError, UsageError
from qmem.units import MIB

UNLIMITED = (1 << 64) - 1
"""No ``max_split_size``: torch's ``SIZE_MAX``."""


class AllocatorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the caching allocator works.  Sizes are bytes.

    Attributes:
        expandable_segments: one growing segment for each pool and stream instead of a ``cudaMalloc`` for each segment.
        max_split_size: a block of at least this is never split, and never serves a smaller request.
        max_non_split_rounding: how much larger than its request such a block may be.
        garbage_collection_threshold: share of the memory limit above which old cached blocks are freed; 0 is never.
        roundup_power2_divisions: steps between two powers of two, by interval from 1 MiB to 64 GiB; 0 is off.
        large_segment_size: the segment for requests of 1 to 10 MiB, and the page of the large expandable segment.
        per_process_memory_fraction: share of the device's memory that the process may reserve; 1 is no limit.
    """

    expandable_segments: bool = False
    max_split_size: int = UNLIMITED
    max_non_split_rounding: int = LARGE_SEGMENT
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: tuple[int, ...] = (0,) * N_BUCKETS
    large_segment_size: int = LARGE_SEGMENT
    per_process_memory_fraction: float = 1.0


_MODELLED = (
    "expandable_segments", "max_split_size_mb", "max_non_split_rounding_mb", "garbage_collection_threshold",
    "roundup_power2_divisions", "large_segment_size_mb", "per_process_memory_fraction", "backend",
    "throw_on_cudamalloc_oom",
)  # fmt: skip
_FLAGS_WITHOUT_EFFECT = (
    "release_lock_on_cudamalloc", "release_lock_on_hipmalloc", "graph_capture_record_stream_reuse",
    "pinned_use_cuda_host_register", "pinned_use_hip_host_register", "pinned_use_background_threads",
    "pinned_free_catch_all",
)  # fmt: skip
_NUMBERS_WITHOUT_EFFECT = (
    "pinned_num_register_threads", "pinned_reserve_segment_size_mb", "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
)  # fmt: skip
"""Keys that change locks, graph capture or pinned host memory, not what a training step holds on the GPU."""
_KEYS = _MODELLED + _FLAGS_WITHOUT_EFFECT + _NUMBERS_WITHOUT_EFFECT

_SYNTAX = "PYTORCH_CUDA_ALLOC_CONF is written key:value,key:value, for example expandable_segments:True"
_WHOLE = re.compile(r"\+?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def parse_settings(alloc_conf: str, expandable_segments: bool = False) -> AllocatorSettings:
    """The settings of a process that is started with this ``PYTORCH_CUDA_ALLOC_CONF``.

    ``expandable_segments`` switches expandable segments on beside the text.

    Raises:
        UsageError: an unknown key, a value that torch refuses, or a flag and a text that contradict each other.
        UnsupportedError: what is not modelled: ``backend:cudaMallocAsync``, ``throw_on_cudamalloc_oom:True``.
    """
    values = dict(_pairs(alloc_conf))
    _check_modelled(values)
    _check_without_effect(values)
    large = _mebibytes(values, "large_segment_size_mb", LARGE_SEGMENT, at_least=MIN_LARGE + MIB)
    return AllocatorSettings(
        expandable_segments=_expandable(values, expandable_segments),
        max_split_size=_mebibytes(values, "max_split_size_mb", UNLIMITED, at_least=large),
        max_non_split_rounding=_mebibytes(values, "max_non_split_rounding_mb", large, at_least=large),
        garbage_collection_threshold=_threshold(values),
        roundup_power2_divisions=_divisions(values),
        large_segment_size=large,
        per_process_memory_fraction=_fraction(values),
    )


def warnings(settings: AllocatorSettings) -> tuple[str, ...]:
    """Sentences on settings that torch accepts and that do not do what they promise."""
    found = []
    if settings.expandable_segments and settings.max_split_size < UNLIMITED:
        found.append(
            "max_split_size_mb together with expandable_segments:True lets reserved memory grow without bound "
            "(pytorch#123548, open for torch 2.14.1); use one of the two"
        )
    if settings.garbage_collection_threshold > 0 and settings.per_process_memory_fraction == 1:
        found.append(
            "garbage_collection_threshold does nothing without a memory limit; set per_process_memory_fraction "
            "below 1 as well"
        )
    return tuple(found)


def _pairs(alloc_conf: str) -> Iterator[tuple[str, str]]:
    """Each key with its value, white space removed; a list keeps its brackets.  A last comma may stand alone."""
    text = re.sub(r"\s", "", alloc_conf)
    seen: set[str] = set()
    while text:
        key, colon, text = text.partition(":")
        _check_key(key, seen)
        match = re.match(r"(\[[^\[\]]*\]|[^,:\[\]]+)(,|$)", text) if colon else None
        if match is None:
            raise UsageError(f"the allocator setting {key} has no readable value", hint=_SYNTAX)
        yield key, match[1]
        text = text[match.end() :]


def _check_key(key: str, seen: set[str]) -> None:
    if key not in _KEYS:
        raise UsageError(f"torch's allocator has no setting {key!r}", hint=f"its settings are {', '.join(_KEYS)}")
    if key in seen:
        raise UsageError(f"the allocator setting {key} is given twice", hint="keep the one that is meant")
    seen.add(key)


def _check_modelled(values: dict[str, str]) -> None:
    backend = values.get("backend", "native")
    if backend not in ("native", "cudaMallocAsync"):
        raise UsageError(f"torch has no allocator backend {backend!r}", hint="it has native and cudaMallocAsync")
    if backend == "cudaMallocAsync":
        raise UnsupportedError("backend:cudaMallocAsync is not modelled", hint="leave it out or take native")
    if _boolean(values, "throw_on_cudamalloc_oom"):
        raise UnsupportedError("throw_on_cudamalloc_oom:True is not modelled", hint="leave it out")


def _check_without_effect(values: dict[str, str]) -> None:
    """They are read all the same: a value that torch refuses stops the program before it allocates anything."""
    for key in _FLAGS_WITHOUT_EFFECT:
        _boolean(values, key)
    for key in _NUMBERS_WITHOUT_EFFECT:
        _whole(key, values.get(key, "0"))


def _boolean(values: dict[str, str], key: str) -> bool | None:
    text = values.get(key)
    if text not in (None, "True", "False"):
        raise UsageError(f"{key} is {text!r}", hint="torch takes exactly True or False")
    return None if text is None else text == "True"


def _expandable(values: dict[str, str], flag: bool) -> bool:
    written = _boolean(values, "expandable_segments")
    if flag and written is False:
        raise UsageError("expandable segments are asked for, and the allocator settings say expandable_segments:False")
    return flag or bool(written)


def _whole(key: str, text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) > UNLIMITED:
        raise UsageError(f"{key} has the value {text!r}", hint="it takes a whole number")
    return int(text)


def _decimal(key: str, text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise UsageError(f"{key} is {text!r}", hint="it takes a number between 0 and 1")
    return float(text)


def _mebibytes(values: dict[str, str], key: str, default: int, *, at_least: int) -> int:
    """Bytes of a setting in MiB; more than a ``size_t`` of bytes holds becomes the largest whole MiB below that."""
    if key not in values:
        return default
    n = _whole(key, values[key])
    if n * MIB < at_least:
        raise UsageError(f"{key} is {n}", hint=f"torch takes {at_least // MIB} or more here")
    return min(n, UNLIMITED // MIB) * MIB


def _threshold(values: dict[str, str]) -> float:
    key = "garbage_collection_threshold"
    if key not in values:
        return 0.0
    threshold = _decimal(key, values[key])
    if not 0 < threshold < 1:
        raise UsageError(f"{key} is {values[key]}", hint="it lies between 0 and 1, both excluded")
    return threshold


def _fraction(values: dict[str, str]) -> float:
    key = "per_process_memory_fraction"
    fraction = _decimal(key, values.get(key, "1"))
    if not 0 <= fraction <= 1:
        raise UsageError(f"{key} is {values[key]}", hint="it lies between 0 and 1")
    return fraction


def _divisions(values: dict[str, str]) -> tuple[int, ...]:
    """One number for all intervals, or ``[256:1,512:2,>:4]``: intervals in MiB, and ``>`` for those above the last."""
    key = "roundup_power2_divisions"
    text = values.get(key, "[]")
    if not text.startswith("["):
        return (_power_of_two(key, text),) * N_BUCKETS
    divisions, last, first = [0] * N_BUCKETS, 0, True
    for entry in filter(None, text[1:-1].split(",")):
        bound, _, count = entry.partition(":")
        value = 0 if count == "0" else _power_of_two(key, count)
        if bound == ">":
            divisions[last + 1 :] = [value] * (N_BUCKETS - last - 1)
            continue
        last = min(_power_of_two(key, bound).bit_length() - 1, N_BUCKETS - 1)
        divisions[0 if first else last : last + 1] = [value] * (last + 1 if first else 1)
        first = False
    return tuple(divisions)


def _power_of_two(key: str, text: str) -> int:
    n = _whole(key, text)
    if n.bit_count() != 1:
        raise UsageError(f"{key} has the value {text}", hint="its intervals and divisions are powers of 2")
    return n
