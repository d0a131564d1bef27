"""The rules of the allocator one by one, and what holds for every sequence of requests."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmem.allocator import AllocatorSettings, CachingAllocator, OutOfMemory, parse_settings, replay, round_to_grain
from qmem.allocator.blocks import CACHED, IN_USE
from qmem.allocator.rounding import round_to_division, segment_size
from qmem.ledger import Mark, Trace
from qmem.units import GIB, KIB, MIB


def after(requests: Iterable[int], text: str = "", **arguments: Any) -> CachingAllocator:
    allocator = CachingAllocator(parse_settings(text), **arguments)
    for handle, n_bytes in enumerate(requests):
        allocator.malloc(handle, n_bytes)
    return allocator


def test_sizes_are_rounded_to_512_bytes() -> None:
    assert [round_to_grain(n) for n in (0, 1, 512, 513, 40_000)] == [0, 512, 512, 1024, 40_448]


def test_a_request_of_nothing_touches_nothing() -> None:
    allocator = after([0])
    assert (allocator.reserved_bytes, allocator.allocated_bytes, allocator.block_bytes(0)) == (0, 0, 0)
    assert allocator.address(0) is None
    allocator.free(0)
    with pytest.raises(KeyError):
        allocator.free(0)


@pytest.mark.parametrize(
    ("requests", "reserved_mib"),
    [
        ([1], 2),
        ([1, MIB], 2),  # 1 MiB is still small and fits behind the first
        ([MIB + 1], 20),
        ([MIB + 1, 9 * MIB], 20),
        ([10 * MIB - 512], 20),
        ([10 * MIB], 10),  # from 10 MiB on a segment of its own
        ([11 * MIB + 1], 12),
        ([1, MIB, MIB + 1, 9 * MIB, 10 * MIB, 11 * MIB + 1], 44),
    ],
)
def test_segments_are_2_mib_20_mib_or_the_request(requests: list[int], reserved_mib: int) -> None:
    assert after(requests).reserved_bytes == reserved_mib * MIB


def test_a_tail_of_exactly_1_mib_is_not_split_off_and_counts_as_allocated() -> None:
    allocator = after([21 * MIB])
    assert allocator.allocated_bytes == allocator.reserved_bytes == 22 * MIB
    assert allocator.requested_bytes == 21 * MIB
    allocator.free(0)
    allocator.malloc(1, 20 * MIB + 512 * KIB)
    assert allocator.block_bytes(1) == 20 * MIB + 512 * KIB


def test_an_expandable_segment_grows_by_pages_and_splits_at_512_bytes() -> None:
    allocator = after([21 * MIB], "expandable_segments:True")
    assert (allocator.reserved_bytes, allocator.allocated_bytes) == (40 * MIB, 21 * MIB)
    allocator.malloc(1, 19 * MIB)
    assert allocator.reserved_bytes == 40 * MIB
    allocator.malloc(2, 1)
    assert allocator.reserved_bytes == 42 * MIB
    allocator.free(0)
    assert allocator.fragmented_bytes() == MIB + 2 * MIB - 512  # of 21 MiB one page, of the small page nothing
    allocator.empty_cache()
    assert allocator.reserved_bytes == 22 * MIB


def test_of_equal_blocks_the_oldest_segments_is_taken() -> None:
    allocator = after([12 * MIB, 12 * MIB, 12 * MIB])
    first = allocator.address(1)
    for handle in (2, 1):
        allocator.free(handle)
    allocator.malloc(3, 12 * MIB)
    assert allocator.address(3) == first


def test_a_closed_hole_goes_before_the_open_end_of_an_expandable_segment() -> None:
    allocator = after([10 * MIB, 8 * MIB, 2 * MIB, 14 * MIB], "expandable_segments:True")
    allocator.free(1)
    assert allocator.reserved_bytes == 40 * MIB  # free: a hole of 8 MiB, and 6 MiB at the end
    hole = 10 * MIB
    allocator.malloc(4, 5 * MIB)
    assert allocator.address(4) == hole


def test_streams_do_not_share_blocks() -> None:
    allocator = after([12 * MIB])
    allocator.free(0)
    allocator.malloc(1, 12 * MIB, stream=1)
    assert allocator.reserved_bytes == 24 * MIB


def test_out_of_memory_is_raised_after_the_cache_was_released_and_leaves_the_rest_as_it_was() -> None:
    allocator = after([300 * MIB, 300 * MIB, 300 * MIB], capacity=GIB)
    allocator.free(1)
    with pytest.raises(OutOfMemory, match=r"no room for 500\.00 MiB: 600\.00 MiB are allocated and 0 B are") as caught:
        allocator.malloc(3, 500 * MIB)
    assert (caught.value.handle, caught.value.n_bytes) == (3, 500 * MIB)
    assert (allocator.n_retries, allocator.n_ooms) == (1, 1)
    assert allocator.reserved_bytes == allocator.allocated_bytes == 600 * MIB
    allocator.malloc(3, 400 * MIB)
    assert allocator.block_bytes(0) == 300 * MIB


def test_a_memory_fraction_limits_what_is_reserved() -> None:
    allocator = after([400 * MIB], "per_process_memory_fraction:0.5", capacity=GIB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(1, 200 * MIB)
    allocator.malloc(1, 100 * MIB)
    with pytest.raises(OutOfMemory):  # 12 MiB are left, and 2 MiB ask for a segment of 20 MiB
        allocator.malloc(2, 2 * MIB)
    assert after([GIB], "per_process_memory_fraction:0.5").limit is None, "no device, no share of it"


def test_garbage_collection_frees_old_segments_before_the_limit() -> None:
    conf = "garbage_collection_threshold:0.5,per_process_memory_fraction:0.9"
    reserved = []
    for text in (conf, "per_process_memory_fraction:0.9"):
        allocator = after([300 * MIB, 200 * MIB, 100 * MIB], text, capacity=GIB)
        allocator.free(0)
        allocator.malloc(3, 310 * MIB)
        reserved.append(allocator.reserved_bytes // MIB)
    assert reserved == [610, 910]


def test_a_block_above_max_split_size_is_neither_split_nor_given_to_smaller_requests() -> None:
    allocator = after([100 * MIB], "max_split_size_mb:40", capacity=120 * MIB)
    allocator.free(0)
    allocator.malloc(1, 14 * MIB)
    assert allocator.reserved_bytes == 114 * MIB
    allocator.free(1)
    allocator.malloc(2, 85 * MIB)  # less than 20 MiB too large
    assert allocator.block_bytes(2) == 100 * MIB
    allocator.free(2)
    allocator.malloc(3, 60 * MIB)  # too large by more: it is released for the new segment
    assert (allocator.block_bytes(3), allocator.n_retries) == (60 * MIB, 0)


def test_the_roundup_example_of_the_documentation() -> None:
    """1200 with 4 divisions becomes 1280 (torch, ``CUDACachingAllocator.cpp``), here in KiB, far above 512 bytes."""
    assert round_to_division(1200 * KIB, (4,) * 16) == 1280 * KIB
    assert round_to_division(1024 * KIB, (4,) * 16) == 1024 * KIB
    assert round_to_division(2000, (4,) * 16) == 2048  # not above 512 x 4


@given(st.integers(1, 64 * GIB), st.sampled_from([0, 1, 2, 4, 8]))
def test_rounding_never_shrinks_and_wastes_at_most_a_step(n: int, division: int) -> None:
    rounded = round_to_division(n, (division,) * 16)
    assert rounded % 512 == 0
    assert n <= rounded <= n + max(512, n // max(division, 1) if division > 1 else 0)
    assert segment_size(rounded) >= rounded


CONFIGURATIONS = st.sampled_from(
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:40",
        "max_split_size_mb:40,expandable_segments:True",
        "garbage_collection_threshold:0.4,per_process_memory_fraction:0.8",
        "roundup_power2_divisions:[4:2,>:4],large_segment_size_mb:32",
    ]
)
REQUESTS = st.one_of(st.integers(0, 4 * KIB), st.integers(0, 4 * MIB), st.integers(0, 90 * MIB))
OPERATIONS = st.lists(st.tuples(st.floats(0, 1), REQUESTS, st.integers(0, 1)), max_size=120)


def act(allocator: CachingAllocator, operations: list[tuple[float, int, int]]) -> set[int]:
    """Free, empty the cache or request, checking the invariants after each; the handles that are left."""
    live: list[int] = []
    for handle, (choice, n_bytes, stream) in enumerate(operations):
        if choice < 0.45 and live:
            allocator.free(live.pop(int(choice / 0.45 * len(live))))
        elif choice > 0.98:
            allocator.empty_cache()
        else:
            try:
                allocator.malloc(handle, n_bytes, stream)
                live.append(handle)
            except OutOfMemory:
                assert allocator.device.capacity is not None
        check(allocator, live)
    return set(live)


def check(allocator: CachingAllocator, live: list[int]) -> None:
    blocks = allocator.blocks()
    assert sum(block.size for block in blocks) == allocator.reserved_bytes
    assert sum(allocator.block_bytes(handle) for handle in live) == allocator.allocated_bytes
    assert allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes
    assert allocator.reserved_bytes <= allocator.peak_reserved_bytes <= (allocator.device.capacity or 1 << 62)
    assert 0 <= allocator.fragmented_bytes() <= allocator.reserved_bytes - allocator.allocated_bytes
    for block in blocks:
        assert block.state in (CACHED, IN_USE)
        neighbour = block.next
        if neighbour is not None:
            assert neighbour.previous is block
            assert neighbour.address == block.address + block.size
            assert block.state == IN_USE or neighbour.state != CACHED, "free neighbours are merged"
        else:
            assert block.range_start is None or block.address >= block.range_start
    ends = [block.address + block.size for block in blocks]
    assert all(end <= block.address for end, block in zip(ends, blocks[1:], strict=False)), "blocks do not overlap"


@settings(max_examples=150, deadline=None)
@given(CONFIGURATIONS, OPERATIONS, st.sampled_from([None, 300 * MIB]))
def test_blocks_tile_what_is_reserved_whatever_is_requested(
    text: str, operations: list[tuple[float, int, int]], capacity: int | None
) -> None:
    allocator = CachingAllocator(parse_settings(text), capacity, device_total=GIB)
    live = act(allocator, operations)
    before = allocator.fragmented_bytes()
    allocator.empty_cache()
    assert allocator.reserved_bytes - allocator.allocated_bytes == before, "what is not fragmented goes back"
    for handle in live:
        allocator.free(handle)
    allocator.empty_cache()
    assert allocator.reserved_bytes == allocator.allocated_bytes == allocator.requested_bytes == 0


@settings(max_examples=50, deadline=None)
@given(CONFIGURATIONS, OPERATIONS)
def test_the_same_requests_give_the_same_calls_to_the_driver(
    text: str, operations: list[tuple[float, int, int]]
) -> None:
    histories = []
    for _ in range(2):
        allocator = CachingAllocator(parse_settings(text), 300 * MIB, device_total=GIB)
        act(allocator, operations)
        histories.append(allocator.history)
    assert histories[0] == histories[1]


@settings(max_examples=50, deadline=None)
@given(OPERATIONS)
def test_unused_limits_change_nothing(operations: list[tuple[float, int, int]]) -> None:
    """Settings whose limit is never met lead through their own code to the result of the default."""
    never = AllocatorSettings(
        max_split_size=GIB, garbage_collection_threshold=0.9, per_process_memory_fraction=0.99,
        roundup_power2_divisions=(1,) * 16,
    )  # fmt: skip
    histories = []
    for each in (AllocatorSettings(), never):
        allocator = CachingAllocator(each, device_total=1024 * GIB)
        act(allocator, operations)
        histories.append((allocator.history, allocator.allocated_bytes))
    assert histories[0] == histories[1]


def trace(events: list[int], sizes: list[int], marks: list[Mark]) -> Trace:
    made = Trace()
    made.events, made.sizes, made.marks = events, sizes, marks
    return made


def test_a_replay_reads_peaks_and_closings_phase_by_phase() -> None:
    marks = [Mark(0, 0, 0, "load"), Mark(3, 1, 1, "forward", empties_cache=True), Mark(5, 1, 1, "backward")]
    use = replay(trace([0, 1, ~0, 2, 3, ~3], [30 * MIB, 12 * MIB, 14 * MIB, 0], marks), AllocatorSettings())
    rows = [msgspec.structs.astuple(phase)[1:] for phase in use.phases]
    assert rows == [
        (42 * MIB, 42 * MIB, 12 * MIB, 42 * MIB, 0),
        (26 * MIB, 26 * MIB, 26 * MIB, 26 * MIB, 0),
        (26 * MIB, 26 * MIB, 26 * MIB, 26 * MIB, 0),
    ]
    assert (use.peak_allocated_bytes, use.peak_allocated_event) == (42 * MIB, 1)
    assert (use.peak_reserved_bytes, use.peak_reserved_event) == (42 * MIB, 1)
    assert use.out_of_memory is None


def test_a_replay_says_where_it_runs_out_of_memory_and_how_much_of_it_is_fragmentation() -> None:
    marks = [Mark(0, 0, 0, "load"), Mark(1, 1, 1, "forward")]
    failing = trace([0, 1, 2, ~1, 3], [40 * MIB, 8 * MIB, 8 * MIB, 60 * MIB], marks)
    use = replay(failing, AllocatorSettings(), capacity=100 * MIB)
    assert use.out_of_memory is not None
    assert msgspec.structs.astuple(use.out_of_memory) == (4, 60 * MIB, 48 * MIB, 60 * MIB)
    assert [phase.mark.phase for phase in use.phases] == ["load"]
    assert (use.peak_allocated_bytes, use.peak_allocated_event) == (56 * MIB, 2)


def test_an_empty_trace_has_no_peak() -> None:
    use = replay(Trace(), AllocatorSettings())
    assert (use.peak_allocated_bytes, use.peak_allocated_event, use.phases) == (0, None, ())


@settings(max_examples=50, deadline=None)
@given(CONFIGURATIONS, st.lists(REQUESTS, max_size=60), st.randoms(use_true_random=False))
def test_a_trace_replayed_twice_gives_the_same(text: str, sizes: list[int], random: Any) -> None:
    events = list(range(len(sizes)))
    for handle in range(0, len(sizes), 2):
        events.insert(random.randint(events.index(handle) + 1, len(events)), ~handle)
    made = trace(events, sizes, [Mark(0, 0, 0, "load"), Mark(len(events) // 2, 1, 1, "forward", empties_cache=True)])
    first, second = (replay(made, parse_settings(text), 400 * MIB, device_total=GIB) for _ in range(2))
    assert first == second
    if first.peak_allocated_event is not None and first.out_of_memory is None:
        assert first.peak_allocated_bytes == max(phase.peak_allocated_bytes for phase in first.phases)
        assert events[first.peak_allocated_event] >= 0
