"""The machine against recordings of torch's own allocator: every address, every call to the driver, every counter.

Each file of ``golden/`` carries a passport that says how it was recorded; ``golden/record.py`` records more.
"""

import json
import lzma
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qmem.allocator import CachingAllocator, OutOfMemory, parse_settings, replay
from qmem.ledger import Mark, Trace

FOLDER = Path(__file__).parent / "golden"
RECORDINGS = sorted(path.name.removesuffix(".json.xz") for path in FOLDER.glob("*.json.xz"))


def recording(name: str) -> dict[str, Any]:
    with lzma.open(FOLDER / f"{name}.json.xz") as file:
        return json.load(file)


def allocator_for(passport: dict[str, Any]) -> CachingAllocator:
    settings = parse_settings(passport["settings"])
    fraction = passport["memory_fraction"]
    settings = msgspec.structs.replace(settings, per_process_memory_fraction=fraction)
    return CachingAllocator(settings, passport["capacity"], device_total=passport["device_total"])


def run(golden: dict[str, Any], allocator: CachingAllocator) -> Iterator[int]:
    """Run the events, yielding the number of each event that is done."""
    empties_cache, failed = set(golden["empties_cache"]), set(golden["failed"])
    for number, event in enumerate(golden["events"]):
        if number in empties_cache:
            allocator.empty_cache()
        if event < 0:
            allocator.free(~event)
        elif event in failed:
            with pytest.raises(OutOfMemory):
                allocator.malloc(event, golden["sizes"][event], golden["streams"][event])
        else:
            allocator.malloc(event, golden["sizes"][event], golden["streams"][event])
        yield number


def test_the_recordings_are_there_and_say_where_they_come_from() -> None:
    assert {"qlora-14b-default", "qlora-14b-expandable", "random-default", "random-expandable"} <= set(RECORDINGS)
    for name in RECORDINGS:
        passport = recording(name)["passport"]
        assert passport["torch"] == "2.14.1+cu130"
        assert passport["simulated"] is True


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_block_lies_where_torch_put_it(name: str) -> None:
    golden = recording(name)
    allocator = allocator_for(golden["passport"])
    failed = set(golden["failed"])
    wanted = iter(golden["addresses"])
    served = [handle for handle in golden["events"] if handle >= 0 and handle not in failed]
    where = {}
    for number in run(golden, allocator):
        handle = golden["events"][number]
        if handle >= 0 and handle not in failed:
            where[handle] = allocator.address(handle)
    assert {handle: next(wanted) for handle in served} == where


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_calls_to_the_driver_are_those_of_torch(name: str) -> None:
    golden = recording(name)
    allocator = allocator_for(golden["passport"])
    for _ in run(golden, allocator):
        pass
    assert [list(event) for event in allocator.history] == golden["segments"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_counters_are_those_of_torch(name: str) -> None:
    golden = recording(name)
    allocator = allocator_for(golden["passport"])
    readings = {event: counters for event, *counters in golden["readings"]}
    for number in run(golden, allocator):
        if number in readings:
            counters = [
                allocator.allocated_bytes, allocator.reserved_bytes, allocator.peak_allocated_bytes,
                allocator.peak_reserved_bytes, allocator.requested_bytes, allocator.n_retries, allocator.n_ooms,
            ]  # fmt: skip
            assert counters[: len(readings[number])] == readings[number], f"after event {number}"
            del readings[number]
    assert not readings


def test_random_recordings_run_out_of_memory_and_collect() -> None:
    """They would prove little if they never came to their limit."""
    for name in RECORDINGS:
        if name.startswith("random"):
            assert len(recording(name)["failed"]) >= 2


def trace_of(golden: dict[str, Any]) -> Trace:
    trace = Trace()
    trace.sizes, trace.events = golden["sizes"], golden["events"]
    starts = [0, *golden["empties_cache"]]
    trace.marks = [Mark(event, 0, 0, "load", empties_cache=event > 0) for event in starts]
    return trace


@pytest.mark.parametrize(("name", "peaks_mib"), [("qlora-14b-default", (19136.276, 20506)),
                                                  ("qlora-14b-expandable", (19087.479, 19510))])  # fmt: skip
def test_the_replay_of_a_14b_qlora_job_has_the_peaks_that_torch_counted(
    name: str, peaks_mib: tuple[float, float]
) -> None:
    """``max_memory_allocated`` and ``max_memory_reserved`` of the recorded process, as it printed them."""
    golden = recording(name)
    settings = parse_settings(golden["passport"]["settings"])
    use = replay(trace_of(golden), settings, device_total=golden["passport"]["device_total"])
    assert use.peak_allocated_bytes / 2**20 == pytest.approx(peaks_mib[0], abs=0.001)
    assert use.peak_reserved_bytes / 2**20 == peaks_mib[1]
    assert use.n_retries == 0
    assert use.out_of_memory is None
    for before, after in pairwise(use.phases):
        assert after.peak_allocated_bytes >= before.allocated_bytes
    assert all(0 <= phase.fragmented_bytes <= phase.reserved_bytes - phase.allocated_bytes for phase in use.phases)
