"""What is said of small snapshots that are made by hand."""

import pickle

import pytest
from snapshots import BASE, MIB, block, event, failure, half_full, segment

from qmem.allocator import parse_settings
from qmem.errors import UsageError
from qmem.snapshot import examine
from qmem.snapshot.reading import parse_snapshot


def answer_of(tree, **asked):
    return examine(parse_snapshot(pickle.dumps(tree)), **asked)


@pytest.mark.parametrize(
    ("device_free", "missing", "fragmentation", "beyond"),
    [
        (24 * MIB, 6 * MIB, 6 * MIB, 0),  # 20 MiB are free in the segment
        (4 * MIB, 26 * MIB, 20 * MIB, 6 * MIB),
        (0, 30 * MIB, 20 * MIB, 10 * MIB),
        (64 * MIB, 0, 0, 0),  # a memory limit refused
    ],
)
def test_what_was_missing_is_parted_into_fragmentation_and_the_rest(device_free, missing, fragmentation, beyond):
    answer = answer_of(half_full(failure(30 * MIB, device_free)))
    short = answer.shortage
    assert (short.missing_bytes, short.fragmentation_bytes, short.beyond_bytes) == (missing, fragmentation, beyond)
    assert (short.free_bytes, short.largest_free_bytes) == (20 * MIB, 20 * MIB)
    assert answer.capacity_bytes == 40 * MIB + (device_free if missing else 0)


@pytest.mark.parametrize(("device_free", "served"), [(24 * MIB, 1), (4 * MIB, 0)])
def test_expandable_segments_serve_it_where_fragmentation_decided(device_free, served):
    answer = answer_of(half_full(failure(30 * MIB, device_free)))
    assert answer.replays[1].n_served == served


def test_what_a_request_that_failed_would_leave_behind_is_in_no_peak():
    quiet, failing = answer_of(half_full()), answer_of(half_full(failure(30 * MIB, 24 * MIB)))
    assert failing.replays[1].peak_reserved_bytes == quiet.replays[1].peak_reserved_bytes


def test_a_request_larger_than_any_gpu_may_fail():
    short = answer_of(half_full(failure(1 << 60, 24 * MIB))).shortage
    assert short.beyond_bytes == (1 << 60) - 44 * MIB


def test_settings_can_run_out_where_the_process_did_not():
    """Four requests of 33 MiB in 136 MiB: not in pages of 20 MiB, and not rounded up to 48 MiB."""
    events, segments = [], []
    for number in range(4):
        address = BASE + number * 34 * MIB
        events += [event("segment_alloc", address, 34 * MIB), event("alloc", address, 33 * MIB)]
        segments.append(segment(address, block(address, 34 * MIB, held=True, requested=33 * MIB)))
    tree = {"segments": segments, "device_traces": [[*events, failure(33 * MIB, 0)]]}
    others = [parse_settings(text) for text in ("max_split_size_mb:20", "roundup_power2_divisions:2")]
    answer = answer_of(tree, alternatives=others)
    assert [run.failed_event for run in answer.replays] == [None, 7, None, 5]


def test_without_a_history_only_the_end_is_told():
    tree = half_full()
    answer = answer_of({**tree, "device_traces": [[]]})
    assert [one.when for one in answer.moments] == ["end"]
    assert answer.recording is answer.fidelity is None
    assert answer.replays == ()
    assert "no history was recorded" in answer.warnings[0]


def test_a_history_with_actions_left_out_is_not_replayed():
    tree = half_full()
    (trace,) = tree["device_traces"]
    answer = answer_of({**tree, "device_traces": [[one for one in trace if one["action"] != "free_completed"]]})
    assert answer.recording.n_contradictions > 0
    assert [one.when for one in answer.moments] == ["end"]
    assert answer.replays == ()
    assert "contradict" in answer.warnings[0]


def test_a_cache_that_was_released_for_a_request_is_no_release_of_the_program():
    """Both carry the stack of the request; other settings need not release anything."""
    stack = [{"filename": "train.py", "line": 3, "name": "step"}]
    first, second = BASE, BASE + 64 * MIB

    def tree(released_by):
        events = [
            event("segment_alloc", first, 40 * MIB), event("alloc", first, 40 * MIB),
            event("free_completed", first, 40 * MIB), event("segment_free", first, 40 * MIB, frames=released_by),
            event("segment_alloc", second, 60 * MIB, frames=stack), event("alloc", second, 60 * MIB, frames=stack),
        ]  # fmt: skip
        return {"segments": [segment(second, block(second, 60 * MIB, held=True))], "device_traces": [events]}

    by_torch, by_program = answer_of(tree(stack)), answer_of(tree([{**stack[0], "line": 2}]))
    assert (by_torch.replays[0].n_retries, by_program.replays[0].n_retries) == (1, 0)
    assert by_torch.fidelity.is_exact
    assert by_program.fidelity.is_exact
    assert by_torch.capacity_bytes == 60 * MIB
    assert by_program.capacity_bytes is None


def test_an_annotation_names_a_holder():
    tree = half_full(event("annotate", BASE, 20 * MIB, user_metadata="kv cache"))
    assert "no stack was recorded [kv cache]" in {holder.where for holder in answer_of(tree).holders}


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="nothing of device 3; it has device 0"):
        answer_of(half_full(), device=3)


def test_an_empty_snapshot_is_refused():
    with pytest.raises(UsageError, match=r"empty.*_record_memory_history"):
        answer_of({"segments": [], "device_traces": [[], []]})


def test_settings_that_a_snapshot_does_not_know_are_said():
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "from_the_future:1", "garbage_collection_threshold": 0.8}
    answer = answer_of({**half_full(), "allocator_settings": settings})
    assert answer.settings == "garbage_collection_threshold:0.8"
    assert any("from_the_future" in sentence for sentence in answer.assumptions)
    assert any("memory fraction" in sentence for sentence in answer.assumptions)
