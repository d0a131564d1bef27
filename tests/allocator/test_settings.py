"""The settings, read as torch reads them."""

import ctypes
import struct
from pathlib import Path

import pytest

from qmem.allocator import AllocatorSettings, parse_settings, warnings
from qmem.allocator.settings import UNLIMITED
from qmem.errors import UnsupportedError, UsageError
from qmem.units import MIB

TAKEN = [
    "",
    "expandable_segments:True",
    "expandable_segments:False",
    "max_split_size_mb:20",
    "max_split_size_mb:+128",
    "max_split_size_mb:0128",
    "max_split_size_mb: 128 , expandable_segments : True",
    "max_split_size_mb:128,",
    "max_split_size_mb:17592186044416",
    "large_segment_size_mb:11",
    "large_segment_size_mb:32",
    "large_segment_size_mb:32,max_split_size_mb:32",
    "max_split_size_mb:15,large_segment_size_mb:12",
    "max_non_split_rounding_mb:21",
    "max_non_split_rounding_mb:35,large_segment_size_mb:32",
    "garbage_collection_threshold:0.8",
    "garbage_collection_threshold:.8",
    "garbage_collection_threshold:8e-1",
    "roundup_power2_divisions:1",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[]",
    "roundup_power2_divisions:[1:2]",
    "roundup_power2_divisions:[256:1,512:2,>:4]",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "roundup_power2_divisions:[256:0,>:4]",
    "roundup_power2_divisions:[>:8,256:2]",
    "roundup_power2_divisions:[512:2,256:4]",
    "roundup_power2_divisions:[256:2,]",
    "roundup_power2_divisions:[65536:2,>:4]",
    "roundup_power2_divisions:[131072:2]",
    "per_process_memory_fraction:0.5",
    "per_process_memory_fraction:1",
    "backend:native",
    "throw_on_cudamalloc_oom:False",
    "release_lock_on_cudamalloc:True,pinned_num_register_threads:8",
]
REFUSED = [
    "expandable_segments:true",
    "expandable_segments:1",
    "expandable_segments:",
    "expandable_segments",
    "expandable_segments:[True]",
    "release_lock_on_cudamalloc:true",
    "foo:1",
    "foo:[1,2],expandable_segments:True",
    ",max_split_size_mb:128",
    "max_split_size_mb:128,,",
    ":",
    "max_split_size_mb=128",
    "max_split_size_mb:19",
    "max_split_size_mb:0",
    "max_split_size_mb:abc",
    "max_split_size_mb:0x80",
    "max_split_size_mb:99999999999999999999",
    "max_split_size_mb:128;expandable_segments:True",
    "large_segment_size_mb:10",
    "large_segment_size_mb:32,max_split_size_mb:31",
    "max_split_size_mb:25,large_segment_size_mb:32",
    "large_segment_size_mb:32,max_non_split_rounding_mb:31",
    "garbage_collection_threshold:0",
    "garbage_collection_threshold:1",
    "garbage_collection_threshold:nan",
    "garbage_collection_threshold:x",
    "roundup_power2_divisions:3",
    "roundup_power2_divisions:0",
    "roundup_power2_divisions:[256:3]",
    "roundup_power2_divisions:[100:2]",
    "roundup_power2_divisions:[0:2]",
    "roundup_power2_divisions:[256:1",
    "per_process_memory_fraction:1.5",
    "per_process_memory_fraction:-1",
    "backend:foo",
]
SLOPPY = ["max_split_size_mb:21.7", "max_split_size_mb:21GB", "max_split_size_mb:-1", "expandable_segments:True]",
          "garbage_collection_threshold:0.8x", "expandable_segments:True,expandable_segments:False"]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED + SLOPPY)
def test_what_is_wrong_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(text)
    assert "\n" not in str(caught.value)


def test_messages_say_what_and_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"no setting 'max_split'; its settings are expandable_segments, max_split_s"):
        parse_settings("max_split:128")
    with pytest.raises(UsageError, match="expandable_segments is 'true'; torch takes exactly True or False"):
        parse_settings("expandable_segments:true")
    with pytest.raises(UsageError, match="max_split_size_mb is 30; torch takes 32 or more here"):
        parse_settings("large_segment_size_mb:32,max_split_size_mb:30")
    with pytest.raises(UsageError, match="max_split_size_mb is given twice"):
        parse_settings("max_split_size_mb:32,max_split_size_mb:64")
    with pytest.raises(UnsupportedError, match="backend:cudaMallocAsync is not modelled"):
        parse_settings("backend:cudaMallocAsync")
    with pytest.raises(UnsupportedError, match="throw_on_cudamalloc_oom"):
        parse_settings("throw_on_cudamalloc_oom:True,per_process_memory_fraction:0.5")


def test_the_flag_switches_expandable_segments_on_and_must_not_contradict_the_text() -> None:
    assert parse_settings("", expandable_segments=True).expandable_segments
    assert parse_settings("expandable_segments:True", expandable_segments=False).expandable_segments
    with pytest.raises(UsageError, match="expandable segments are asked for"):
        parse_settings("expandable_segments:False", expandable_segments=True)


def test_the_default_is_torchs() -> None:
    assert parse_settings("") == AllocatorSettings()
    assert AllocatorSettings().max_split_size == UNLIMITED
    assert AllocatorSettings().large_segment_size == 20 * MIB


def test_settings_that_do_not_do_what_they_promise_are_warned_of() -> None:
    assert warnings(parse_settings("max_split_size_mb:128")) == ()
    (bug,) = warnings(parse_settings("max_split_size_mb:128,expandable_segments:True"))
    assert "pytorch#123548" in bug
    (idle,) = warnings(parse_settings("garbage_collection_threshold:0.8"))
    assert "per_process_memory_fraction" in idle
    assert warnings(parse_settings("garbage_collection_threshold:0.8,per_process_memory_fraction:0.9")) == ()


DEFAULTS = (
    "large_segment_size_mb:20,max_non_split_rounding_mb:20,expandable_segments:False,per_process_memory_fraction:1"
)


def torch_reads(text: str) -> AllocatorSettings:
    """The settings as torch's parser leaves them, from the memory of its one instance.

    The layout is that of ``AcceleratorAllocatorConfig`` in ``c10/core/AllocatorConfig.h`` of 2.14.1: three sizes, a
    vector of divisions, a double and a flag.  The fraction is CUDA's own and not read here.
    """
    torch = pytest.importorskip("torch")
    if not torch.__version__.startswith("2.14.1"):
        pytest.skip("the layout is known for torch 2.14.1")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    instance = library._ZN3c1016CachingAllocator26AcceleratorAllocatorConfig8instanceEv
    instance.restype = ctypes.c_void_p
    torch._C._accelerator_setAllocatorSettings(DEFAULTS)
    try:
        torch._C._accelerator_setAllocatorSettings(text)
        large, split, rounding, first, last, _, threshold, expandable = struct.unpack(
            "6Qd?", ctypes.string_at(instance(), 57)
        )
        divisions = struct.unpack(f"{(last - first) // 8}Q", ctypes.string_at(first, last - first))
    finally:
        torch._C._accelerator_setAllocatorSettings(DEFAULTS)
    return AllocatorSettings(
        expandable_segments=expandable,
        max_split_size=split,
        max_non_split_rounding=rounding,
        garbage_collection_threshold=threshold,
        roundup_power2_divisions=divisions,
        large_segment_size=large,
        per_process_memory_fraction=parse_settings(text).per_process_memory_fraction,
    )


@pytest.mark.libraries
@pytest.mark.parametrize("text", TAKEN)
def test_torch_reads_the_same_settings(text: str) -> None:
    assert parse_settings(text) == torch_reads(text)


@pytest.mark.libraries
@pytest.mark.parametrize("text", REFUSED)
def test_torch_refuses_what_is_refused(text: str) -> None:
    torch = pytest.importorskip("torch", minversion="2.14.1")
    torch._C._accelerator_setAllocatorSettings(DEFAULTS)
    try:
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            torch._C._accelerator_setAllocatorSettings(text)
    finally:
        torch._C._accelerator_setAllocatorSettings(DEFAULTS)


@pytest.mark.libraries
@pytest.mark.parametrize("text", SLOPPY)
def test_torch_takes_what_is_refused_here_on_purpose(text: str) -> None:
    torch = pytest.importorskip("torch", minversion="2.14.1")
    try:
        torch._C._accelerator_setAllocatorSettings(text)
    finally:
        torch._C._accelerator_setAllocatorSettings(DEFAULTS)
