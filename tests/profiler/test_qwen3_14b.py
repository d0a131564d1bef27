"""The job that the README opens with, whole, on the phantom."""

import time

import pytest

from qmem.job import Job
from qmem.profiler import profile

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]

MANAGED = 40 * 3 * 139_264 * 8
"""Of 14 adapter tensors a layer, three have 100,000 elements or more; their two fp32 states are paged."""


def test_it_peaks_where_it_did_in_half_a_minute_and_little_host_memory(a100):
    started = time.monotonic()
    ledger = profile(Job(model="Qwen3-14B", rank=8), phantom=a100)
    assert time.monotonic() - started < 30
    assert ledger.counters["rss peak"] < 1.5 * 1024**3
    assert ledger.paged_bytes == MANAGED == 133_693_440
    assert (ledger.state, str(ledger.peak.moment)) == ("clean", "backward of step 2")
    if (ledger.versions["torch"], ledger.versions["transformers"]) == ("2.14.1", "5.23.0"):
        assert ledger.peak.allocated_bytes == 20_372_043_264


def test_with_expandable_segments_a_load_leaves_no_tails(a100):
    ledger = profile(Job(model="Qwen3-14B", rank=8, expandable_segments=True), phantom=a100, steps=2)
    loaded = next(
        reading.n_bytes
        for reading in ledger.readings
        if (reading.moment.phase, reading.waterline, reading.measure) == ("load", "allocated", "current")
    )
    assert round(loaded / 1024**2, 2) == 9468.90
