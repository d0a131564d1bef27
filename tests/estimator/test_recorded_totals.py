"""The walk against torch's counters of whole recorded jobs: requested bytes are equal, to the byte."""

import json

import pytest
from recorded import TOTALS, gpu_of, job_of, phases_of
from recorded_report import REPORT
from unsplit import most_unsplit

from qmem import estimate
from qmem.errors import UnsupportedError
from qmem.ledger import Ledger

REFUSED = {"G22_bias_all", "G23_bias_lora_only", "G26_embed_lora"}
WALKED = sorted(set(TOTALS) - REFUSED)
KNOWN_ERRORS: dict[str, dict[str, int]] = json.loads(REPORT.with_suffix(".json").read_text())
"""Bytes that the full replay is off by, of the few recordings where it is: no recording may get worse."""


@pytest.fixture(scope="module", params=WALKED)
def walked(request, tmp_path_factory):
    recorded = TOTALS[request.param]
    job = job_of(recorded, tmp_path_factory.mktemp("model"))
    return recorded, estimate(job, gpu_of(recorded), replay="full")


@pytest.fixture
def known(request):
    """What is known to be off for the recording."""
    name = request.node.callspec.params["walked"]
    return KNOWN_ERRORS.get(name, {"allocated": 0, "reserved": 0})


def current(ledger: Ledger, phase: str, step: int = 0) -> int:
    readings = [
        r.n_bytes
        for r in ledger.readings
        if (r.moment.phase, r.moment.step, r.waterline, r.measure) == (phase, step, "requested", "current")
    ]
    return readings[-1]


def peak(ledger: Ledger, step: int, waterline: str) -> tuple[int, str]:
    """The highest reading of a step, and its phase."""
    return max(
        (r.n_bytes, r.moment.phase)
        for r in ledger.readings
        if r.moment.step == step and r.waterline == waterline and r.measure == "peak"
    )


def test_bytes_after_load_and_preparation_are_equal(walked):
    recorded, ledger = walked
    assert current(ledger, "load") == recorded["after_load"]["requested"]
    prepared = [r.moment.phase for r in ledger.readings if r.moment.step == 0]
    last = "prepare" if "prepare" in prepared else "load"
    assert current(ledger, last) == recorded["after_prepare"]["requested"]


@pytest.mark.parametrize("step", [1, 2])
def test_the_requested_peak_of_a_step_is_equal_and_in_the_same_phase(walked, step):
    recorded, ledger = walked
    n_bytes, phase = peak(ledger, step, "requested")
    assert n_bytes == recorded["steps"][step - 1]["peak_requested"]
    assert phase in phases_of(recorded["steps"][step - 1]["fullest_phase"])


@pytest.mark.parametrize("waterline", ["allocated", "reserved"])
def test_the_replayed_peak_is_that_of_the_allocator_or_off_by_no_more_than_is_published(walked, waterline, known):
    recorded, ledger = walked
    n_bytes, _ = peak(ledger, 2, waterline)
    off = n_bytes - recorded["steps"][1][f"peak_{waterline}"]
    assert abs(off) <= abs(known[waterline]), "find the reason, or publish it: tests/estimator/recorded_report.py"


def test_managed_bytes_are_equal(walked):
    recorded, ledger = walked
    assert ledger.paged_bytes == recorded["steps"][1]["managed"]


@pytest.mark.parametrize("name", WALKED)
def test_rounded_to_512_bytes_alone_only_unsplit_ends_of_blocks_are_missing(name, tmp_path):
    recorded = TOTALS[name]
    ledger = estimate(job_of(recorded, tmp_path), gpu_of(recorded), replay="none")
    n_bytes, _ = peak(ledger, 2, "allocated")
    assert 0 <= recorded["steps"][1]["peak_allocated"] - n_bytes <= most_unsplit(ledger)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_walked_is_refused(name, tmp_path):
    recorded = TOTALS[name]
    with pytest.raises(UnsupportedError, match="not modelled yet"):
        estimate(job_of(recorded, tmp_path), gpu_of(recorded))
