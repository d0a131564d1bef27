"""A 14B job's trace, as recorded from torch (72,781 events), is replayed in far less than 0.3 s of processor time."""

import json
import lzma
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from qmem.allocator import AllocatorSettings, Replay, replay
from qmem.ledger import Mark, Trace

FOLDER = Path(__file__).parent.parent / "allocator" / "golden"


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("mode", ["default", "expandable"])
def test_the_replay_of_a_14b_job(benchmark: BenchmarkFixture, mode: str) -> None:
    with lzma.open(FOLDER / f"qlora-14b-{mode}.json.xz") as file:
        golden = json.load(file)
    trace = Trace()
    trace.sizes, trace.events = golden["sizes"], golden["events"]
    trace.marks = [Mark(event, 0, 0, "load", empties_cache=True) for event in golden["empties_cache"]]
    settings = AllocatorSettings(expandable_segments=mode == "expandable")
    result = benchmark.pedantic(lambda: replay(trace, settings), rounds=5)
    assert isinstance(result, Replay)
    assert len(trace.events) > 70_000
