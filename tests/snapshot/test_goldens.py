"""The stored snapshots, read without torch: every figure is added up again from the file itself."""

import pickle
import subprocess
import sys

import msgspec
import pytest
from snapshots import FOLDER, GOLDENS, MIB, content, tree

from qmem.snapshot import examine
from qmem.snapshot.reading import parse_snapshot


@pytest.fixture(params=GOLDENS)
def name(request):
    return request.param


def default_segments(snapshot, device=0):
    segments = [one for one in snapshot["segments"] if one["device"] == device]
    return [one for one in segments if one["segment_pool_id"] == (0, 0)]


def moment(answer, when):
    return next(one for one in answer.moments if one.when == when)


def test_the_goldens_are_those_that_record_py_makes(name):
    assert name in (FOLDER / "record.py").read_text(encoding="utf-8")
    assert sorted(path.name for path in FOLDER.glob("*.pickle*")) == sorted(GOLDENS)


def test_the_end_is_the_sum_of_the_segments(name):
    segments, end = default_segments(tree(name)), moment(examine(parse_snapshot(content(name)), device=0), "end")
    blocks = [block for segment in segments for block in segment["blocks"] if block["state"] != "inactive"]
    assert end.reserved_bytes == sum(segment["total_size"] for segment in segments)
    assert end.allocated_bytes == sum(segment["active_size"] for segment in segments)
    assert end.requested_bytes == sum(block["requested_size"] for block in blocks)


def test_the_recorded_peak_is_the_highest_sum_of_segments_that_came_and_went(name):
    snapshot = tree(name)
    private = [s["address"] for s in snapshot["segments"] if s["segment_pool_id"] != (0, 0)]
    signs = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
    moves = [
        signs[e["action"]] * e["size"]
        for e in snapshot["device_traces"][0]
        if e["action"] in signs and e["pool_id"] == (0, 0)
    ]
    assert private or name == "out-of-memory.pickle"
    now = highest = sum(s["total_size"] for s in default_segments(snapshot)) - sum(moves)
    for move in moves:
        now += move
        highest = max(highest, now)
    assert examine(parse_snapshot(content(name)), device=0).fidelity.recorded_peak_bytes == highest


def test_the_replay_with_the_settings_of_the_process_is_exact(name):
    """The history may begin in the middle, have two streams, a private pool, and a cache that was emptied."""
    fidelity = examine(parse_snapshot(content(name)), device=0).fidelity
    assert fidelity.is_exact
    assert fidelity.replayed_peak_bytes == fidelity.recorded_peak_bytes
    assert fidelity.replayed_end_bytes == fidelity.recorded_end_bytes
    assert fidelity.largest_difference_bytes == 0


@pytest.mark.parametrize("by", ["line", "module"])
def test_holders_add_up_to_what_is_requested_at_every_moment(name, by):
    answer = examine(parse_snapshot(content(name)), by=by)
    for one in answer.moments:
        uses = [holder.uses[one.when] for holder in answer.holders if one.when in holder.uses]
        assert sum(use.n_bytes for use in uses) == one.requested_bytes <= one.allocated_bytes <= one.reserved_bytes


def test_free_bytes_are_cache_segment_by_segment(name):
    answer = examine(parse_snapshot(content(name)))
    found = answer.fragmentation
    at = moment(answer, found.when)
    assert found.free_bytes == at.reserved_bytes - at.allocated_bytes
    assert found.free_bytes == sum(use.free_bytes for use in found.segments)
    for use in found.segments:
        assert use.n_bytes == use.allocated_bytes + use.free_bytes
        assert 0 < use.largest_free_bytes <= use.free_bytes
        assert bool(use.kept_by) == bool(use.n_held) == bool(use.allocated_bytes)


def test_the_failure_is_the_one_that_torch_described():
    """It printed: tried to allocate 256.00 MiB, 146.00 MiB is free, 314.33 MiB is reserved but unallocated."""
    answer = examine(parse_snapshot(content("out-of-memory.pickle")))
    short = answer.shortage
    assert short.device_free_bytes + short.missing_bytes == 256 * MIB
    assert short.device_free_bytes == 146 * MIB
    assert round(short.free_bytes / MIB, 2) == 314.33
    assert short.missing_bytes == short.fragmentation_bytes == 110 * MIB
    assert short.beyond_bytes == 0
    assert answer.capacity_bytes == moment(answer, "out of memory").reserved_bytes + 146 * MIB


def test_expandable_segments_serve_what_fragmentation_refused():
    answer = examine(parse_snapshot(content("out-of-memory.pickle")))
    own, turned = answer.replays
    assert (own.settings, turned.settings) == ("default", "expandable_segments:True")
    assert turned.n_served == 1
    assert turned.failed_event is None
    assert turned.peak_reserved_bytes < own.peak_reserved_bytes


def test_the_other_pools_and_devices_stand_apart():
    answer = examine(parse_snapshot(content("late.pickle.xz")))
    assert answer.device == 0
    assert answer.devices.keys() == {0, 1}
    (pool,) = answer.private_pools
    assert (pool.pool_id, pool.allocated_bytes, pool.n_segments) == ((0, 1), 13 * MIB, 2)
    assert sum(answer.devices.values()) == sum(s["total_size"] for s in tree("late.pickle.xz")["segments"])
    other = examine(parse_snapshot(content("late.pickle.xz")), device=1)
    assert moment(other, "end").allocated_bytes == 50 * MIB


def test_a_history_that_begins_in_the_middle_says_so():
    whole, late, cut = (examine(parse_snapshot(content(f))) for f in ("out-of-memory.pickle", *GOLDENS[1::2]))
    assert whole.recording.is_whole
    assert not late.recording.is_whole
    assert not cut.recording.is_whole
    assert late.recording.begin_held_bytes == 30 * MIB < cut.recording.begin_held_bytes
    assert any("begins with 30.00 MiB held" in sentence for sentence in late.assumptions)
    assert not any("begins with" in sentence for sentence in whole.assumptions)


def test_a_cut_history_has_the_moments_of_the_whole_one():
    whole, cut = (examine(parse_snapshot(content(name))) for name in ("late.pickle.xz", "cut.pickle.xz"))
    for when in ("peak", "end"):
        one, other = moment(whole, when), moment(cut, when)
        assert msgspec.structs.replace(one, event=0) == msgspec.structs.replace(other, event=0)


def without(value, keys):
    if isinstance(value, dict):
        return {key: without(inner, keys) for key, inner in value.items() if key not in keys}
    return [without(inner, keys) for inner in value] if isinstance(value, list) else value


def test_a_snapshot_of_torch_2_4_is_read(name):
    """It has no pool, metadata and compile context in events, and nothing of the host."""
    later = {"pool_id", "user_metadata", "compile_context", "host_segments", "host_traces", "external_annotations"}
    old = pickle.dumps(without(tree(name), later), protocol=2)
    assert examine(parse_snapshot(old), device=0) == examine(parse_snapshot(content(name)), device=0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_was_saved_with_is_read(protocol):
    snapshot = tree("late.pickle.xz")
    assert parse_snapshot(pickle.dumps(snapshot, protocol)) == parse_snapshot(content("late.pickle.xz"))


def test_nothing_of_torch_is_needed():
    program = (
        "import sys; sys.modules['torch'] = None; from qmem.snapshot import examine, read_snapshot; "
        f"print(examine(read_snapshot({str(FOLDER / 'out-of-memory.pickle')!r})).settings)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "default\n"
