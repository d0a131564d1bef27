"""What a reader of ``qmem compare`` sees."""

import re

import msgspec
import pytest

from qmem.job import Job
from qmem.ledger import Interval, Item, Kind, Moment, Reading
from qmem.report.compare import render_comparison
from qmem.report.markdown import comparison_markdown

GIB = 1024**3
LOAD, LOSS_2 = Moment(0, 0, "load", 0), Moment(2, 1, "loss", 1_500)
BACKWARD_2, END_2 = Moment(2, 1, "backward", 1_900), Moment(2, 1, "optimizer step", 2_000)
WIDTHS = (40, 80, 120, 200)
LINE = re.compile(
    r"(?P<label>.*?\S)\s{2,}(?P<a><?\d+\.\d{3}|-)\s+(?P<b><?\d+\.\d{3}|-)\s+(?P<moved>[+-]?[\d,]+|-)(?:\s+(?P<share>\S+))?\s*$"
)


def readings(growth: int = 0):
    found = []
    for moment, n_bytes in ((LOAD, 2 * GIB), (LOSS_2, 9 * GIB), (BACKWARD_2, 5 * GIB), (END_2, 4 * GIB)):
        for measure in ("peak", "current"):
            for waterline, more in (("requested", 0), ("allocated", 512)):
                n = n_bytes + more + (growth if moment is not LOAD else 0)
                found.append(Reading(moment=moment, waterline=waterline, measure=measure, n_bytes=n, counter="c"))
    return tuple(found)


@pytest.fixture
def pair(ledger):
    """An estimate, and a simulated run of the same job that holds one tensor more from the loss on."""
    a = msgspec.structs.replace(ledger, readings=readings())
    more = 300 * 1024**2
    extra = Item(n_bytes=more, kind=Kind.INTERMEDIATE, owner="lm_head input", born=LOSS_2, dies=END_2)
    peak = msgspec.structs.replace(
        a.peak, requested_bytes=a.peak.requested_bytes + more + 7, allocated_bytes=a.peak.allocated_bytes + more + 7,
        reserved_bytes=None, device_bytes=None,
    )  # fmt: skip
    b = msgspec.structs.replace(
        a, instrument="phantom profile", device="NVIDIA A100 (phantom)", items=(*a.items, extra), peak=peak,
        readings=readings(more),
    )  # fmt: skip
    return a, b


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """The lines of the table at the peak, by label."""
    table = text.partition("At the peak")[2].partition("Holdings that differ")[0]
    return {
        row["label"].strip(): row.groupdict()
        for line in table.replace("|", " ").splitlines()
        if (row := LINE.match(line))
    }


@pytest.fixture(params=WIDTHS)
def page(request, printed, pair):
    return printed(render_comparison, *pair, width=request.param)


def test_each_column_says_which_instrument_it_is_and_that_a_phantom_is_simulated(page):
    words = " ".join(page.split())
    assert "estimate simulated" in words
    assert "phantom profile, simulated" in words
    assert "NVIDIA A100" in words


def test_a_tainted_result_says_so_over_its_column_and_an_early_end_in_its_name(printed, pair):
    a, b = pair
    bad = msgspec.structs.replace(b, state="tainted", ended="out of memory", passport={"date": "2026-01-01"})
    page = printed(render_comparison, a, bad, width=200)
    assert "phantom profile, simulated, tainted, ended early: out of memory" in page
    above = page.partition("At the peak")[2].partition("weights")[0]
    assert above.index("simulated") < above.index("tainted")
    assert "tainted" in comparison_markdown(a, bad)


def test_counters_of_two_runs_are_a_block_of_their_own(printed, pair):
    a, b = (
        msgspec.structs.replace(each, counters={"host peak": n}) for each, n in zip(pair, (1_000, 3_000), strict=True)
    )
    lines = [line.split() for line in printed(render_comparison, a, b).splitlines()]
    assert ["host", "peak", "1,000", "3,000", "+2,000"] in lines


def test_kinds_and_waterlines_stand_side_by_side_with_the_exact_difference(page, pair):
    rows, (a, b) = rows_of(page), pair
    grown = b.peak.requested_bytes - a.peak.requested_bytes
    assert rows["total requested"]["moved"] == f"{grown:+,}"
    assert rows["total requested"]["share"] == f"{100 * grown / a.peak.requested_bytes:+.2f}"
    assert rows["intermediate"]["moved"] == f"{300 * 1024**2:+,}"
    assert rows["unexplained"]["moved"] == "+7"
    assert rows["base weight"]["moved"] == "0"
    assert rows["cache"]["b"] == rows["total reserved"]["b"] == "-"


def thousandths(text: str) -> int:
    return 0 if text.startswith("<") else round(float(text) * 1000)


def test_printed_rows_add_up_to_the_printed_totals_in_both_columns(page):
    rows = rows_of(page)
    headings = ("weights", "LoRA and AdamW", "activations", "buffers", "overhead", "unexplained")
    kinds = [row for label, row in rows.items() if not label.startswith("total") and label not in headings[:-1]]
    for side in ("a", "b"):
        requested = sum(thousandths(row[side]) for row in kinds if row["label"].strip() not in ("rounding", "cache"))
        assert requested == thousandths(rows["total requested"][side])
        assert requested + thousandths(rows["rounding"][side]) == thousandths(rows["total allocated"][side])
    exact = sum(
        int(row["moved"].replace(",", "")) for row in kinds if row["label"].strip() not in ("rounding", "cache")
    )
    assert exact == int(rows["total requested"]["moved"].replace(",", ""))


def test_the_largest_holding_that_differs_is_named(page):
    assert "lm_head input: intermediate" in " ".join(page.split())


def test_steps_stand_apart_and_the_allocated_high_water_of_each_phase_is_always_shown(page):
    before, _, step = page.partition("Before training")[2].partition("Step 2")
    assert before.count("at most: allocated") == 1
    assert step.count("at most: allocated") == 3
    assert "closing: intermediate" in step
    assert "closing: intermediate" not in before


def test_paged_memory_is_a_block_of_its_own(page):
    block = page.partition("Paged memory and the device")[2]
    assert "managed bytes" in block
    assert "in none of torch's totals" in " ".join(block.split())


def test_equal_ledgers_are_said_to_be_equal(printed, ledger):
    page = printed(render_comparison, ledger, ledger)
    assert page.startswith("A and B are equal in all ")
    assert "Holdings that differ" not in page
    assert "Model, device, job, stack and versions are the same." in page


def test_what_was_asked_differently_stands_first(printed, ledger):
    other = msgspec.structs.replace(ledger, job=Job(model="m", rank=64))
    lines = [line.split() for line in printed(render_comparison, ledger, other).splitlines()]
    assert ["job.rank", "8", "64"] in lines[: lines.index(["At", "the", "peak"])]


def test_peaks_in_different_phases_are_shown_and_not_scored(printed, ledger):
    moved = msgspec.structs.replace(ledger.peak, moment=Moment(2, 1, "backward", 1_500))
    words = " ".join(printed(render_comparison, ledger, msgspec.structs.replace(ledger, peak=moved)).split())
    assert "A peaks at the loss of step 2, B at the backward of step 2: not the same phase" in words


def test_a_device_total_in_doubt_gives_a_difference_in_doubt(printed, ledger):
    peak = msgspec.structs.replace(ledger.peak, device_bytes=Interval(20 * GIB, 21 * GIB))
    sure = msgspec.structs.replace(peak, device_bytes=Interval(22 * GIB, 22 * GIB))
    a, b = (msgspec.structs.replace(ledger, peak=each) for each in (peak, sure))
    assert "+1.000 to +2.000 GiB" in printed(render_comparison, a, b)


def test_no_line_is_wider_than_the_terminal(printed, pair):
    for width in (80, 120, 200):
        lines = printed(render_comparison, *pair, width=width).splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width


def test_a_pipe_no_color_and_ascii_show_the_same_numbers(printed, pair, monkeypatch):
    plain = printed(render_comparison, *pair)
    assert "\x1b" not in plain
    in_ascii = printed(render_comparison, *pair, encoding="ascii")
    assert rows_of(in_ascii) == rows_of(plain)
    assert "?" not in in_ascii
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in printed(render_comparison, *pair)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3\d", printed(render_comparison, *pair))


def test_brackets_in_names_are_text(printed, ledger):
    odd = msgspec.structs.replace(ledger.items[0], owner="[bold]experts[0]|x", n_bytes=5)
    other = msgspec.structs.replace(ledger, items=(odd, *ledger.items[1:]))
    assert "[bold]experts[0]|x" in printed(render_comparison, ledger, other, width=200)
    assert "\\[bold\\]experts\\[0\\]\\|x" in comparison_markdown(ledger, other)


def test_markdown_has_the_same_tables_with_as_many_cells_in_every_line(printed, pair):
    a, b = pair
    text = comparison_markdown(a, b)
    titles = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    page = printed(render_comparison, a, b, width=200)
    assert titles
    assert all(title in page for title in titles)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    total = next(line for line in text.splitlines() if "total requested" in line)
    assert f"{b.peak.requested_bytes - a.peak.requested_bytes:+,}" in total
