"""``render_estimate`` of what was run: no advice that is for estimates, nothing that breaks on a run cut short."""

import pytest
from msgspec import structs

from qmem.ledger import Moment, Parameters, Reading
from qmem.report.ledger_sheets import end_sheets
from qmem.report.terminal import render_estimate
from qmem.report.view import EstimateView


@pytest.fixture
def page_of(printed, ledger):
    """The page of a ledger that knows no total of the device, on one line."""
    peak = structs.replace(ledger.peak, device_bytes=None)
    here = structs.replace(ledger, peak=peak, device="NVIDIA L4 (phantom)")

    def page(**changes) -> str:
        view = EstimateView(ledger=structs.replace(here, **changes))
        return " ".join(printed(render_estimate, view, width=120).split())

    return page


def test_an_estimate_says_what_would_tell_the_device_and_a_run_does_not(page_of):
    assert "Not known here: device (it depends on the card: --gpu)." in page_of()
    run = page_of(instrument="phantom profile")
    assert "Not known here: device." in run
    assert "--gpu" not in run
    assert "--replay" not in run


def test_a_run_was_on_its_device_and_an_estimate_took_its_kernels(page_of):
    assert "kernels and workspaces of NVIDIA L4" in page_of()
    assert "run on NVIDIA L4 (phantom)" in page_of(instrument="phantom profile")


def test_what_makes_a_run_doubtful_stands_in_title_and_column(page_of):
    tainted = page_of(instrument="phantom profile", state="tainted", ended="out of memory")
    assert "without a GPU; tainted; it ended early: out of memory" in tainted
    assert tainted.count("tainted") == 2


def test_a_model_without_counted_parameters_has_no_share(page_of):
    page = page_of(parameters=Parameters(0, 0))
    assert "0 parameters, 0 trained instrument" in page


def test_the_end_of_memory_is_the_last_reading_and_only_of_a_run_that_ran_out_of_it(ledger):
    end = Moment(2, 1, "backward", 1_900)
    reading = Reading(moment=end, waterline="requested", measure="current", n_bytes=1, counter="torch")
    ledger = structs.replace(ledger, readings=(reading,))
    assert end_sheets(ledger) == ()
    (sheet,) = end_sheets(structs.replace(ledger, ended="out of memory"))
    assert sheet.title == "Where memory ended, the backward of step 2: the largest holdings"
    assert len(sheet.lines) == 8
