"""How much managed memory lies on the GPU: the driver's word where it can tell, and nothing where it cannot."""

import pytest

from qmem.profiler import profile

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]


def test_a_driver_that_can_tell_is_asked_for_every_page(small_job, a100, monkeypatch):
    monkeypatch.setenv("QMEM_PHANTOM_LOCATIONS", "1")
    ledger = profile(small_job(), phantom=a100, steps=2)
    assert ledger.counters["managed resident"] == ledger.paged_bytes > 0


def test_of_a_driver_that_cannot_tell_nothing_is_said(profiled):
    ledger = profiled()
    assert ledger.paged_bytes > 0
    assert [counter for counter in ledger.counters if "resident" in counter] == []
