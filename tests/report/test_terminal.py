"""What a reader of ``qmem estimate`` sees."""

import msgspec
import pytest

from qmem.job import Job
from qmem.ledger import Kind
from qmem.report.breakdown import breakdown
from qmem.report.terminal import render_estimate
from qmem.report.view import EstimateView

GIB = 1024**3
WIDTHS = (60, 80, 120, 200)


@pytest.fixture(params=WIDTHS)
def page(request, printed, view):
    return printed(render_estimate, view, width=request.param)


def amounts_of(rows, label):
    return next((row.low, row.high) for row in rows if row.label == label)


def test_every_holding_of_the_ledger_stands_in_its_row_at_every_width(page, read_rows, ledger):
    rows = read_rows(page)
    alive = ledger.by_kind(ledger.peak.moment)
    for label, kind in (
        ("4-bit data", Kind.BASE_WEIGHT),
        ("quantization state", Kind.QUANT_STATE),
        ("fp32 weights", Kind.WEIGHT_32BIT),
        ("adapters", Kind.ADAPTER),
        ("optimizer state on the GPU", Kind.OPTIMIZER_STATE),
        ("checkpoints", Kind.CHECKPOINT),
        ("logits and loss", Kind.LOGITS),
    ):
        low, high = amounts_of(rows, label)
        assert low == high
        assert low == pytest.approx(alive[kind] / GIB * 1000, abs=1)


def test_totals_are_the_peaks_of_the_ledger_at_each_waterline(page, read_rows, ledger):
    rows = read_rows(page)
    for waterline, n_bytes in (
        ("requested", ledger.peak.requested_bytes),
        ("allocated", ledger.peak.allocated_bytes),
        ("reserved", ledger.peak.reserved_bytes),
    ):
        assert amounts_of(rows, f"total {waterline}") == (round(n_bytes / GIB * 1000),) * 2
    device = ledger.peak.device_bytes
    assert amounts_of(rows, "total device") == (round(device.low / GIB * 1000), round(device.high / GIB * 1000))


def test_printed_rows_add_up_to_headings_and_headings_to_totals(page, read_rows):
    rows = read_rows(page)
    table = rows[: next(i for i, row in enumerate(rows) if row.label == "total device") + 1]
    totals = {row.label: row for row in table if row.label.startswith("total")}
    headings = [row for row in table if not row.indented and row.label not in totals]
    for position, row in enumerate(table):
        if row in headings:
            below = []
            for other in table[position + 1 :]:
                if not other.indented:
                    break
                below.append(other)
            assert (row.low, row.high) == (sum(r.low for r in below), sum(r.high for r in below)), row.label
    device = totals["total device"]
    assert (device.low, device.high) == (sum(r.low for r in headings), sum(r.high for r in headings))


def test_each_waterline_is_the_one_below_and_the_rows_between(page, read_rows):
    rows = read_rows(page)
    requested, allocated = amounts_of(rows, "total requested")[0], amounts_of(rows, "total allocated")[0]
    reserved = amounts_of(rows, "total reserved")[0]
    assert allocated - requested == amounts_of(rows, "rounding")[0]
    assert reserved - allocated == amounts_of(rows, "cache")[0]
    context, paged = amounts_of(rows, "context"), amounts_of(rows, "optimizer state, paged")
    assert amounts_of(rows, "total device") == (reserved + context[0] + paged[0], reserved + context[1] + paged[1])


def test_a_holding_that_is_dead_at_the_peak_is_shown_as_nothing_and_a_tiny_one_as_less_than_a_digit(page):
    lines = {line[:40].split("  ")[1].strip(): line for line in page.splitlines() if line.startswith("  ")}
    assert "0.000" in lines["gradients"]
    assert "<0.001" in lines["intermediates"]


def test_the_table_names_the_moment_the_instrument_and_both_units(page):
    words = " ".join(page.split())
    assert "loss of step 2" in words
    assert "instrument: estimate, a walk through the step on paper" in words
    assert "GiB" in words
    assert "rule of thumb" in words
    for waterline in ("requested", "allocated", "reserved", "device"):
        assert f"total {waterline}" in words


def test_the_three_largest_holdings_come_with_their_formulas(page):
    words = " ".join(page.split())
    largest = words.partition("Its largest holdings:")[2].partition("card ")[0]
    first, second, third = largest.split(" - ")[1:]
    assert first.startswith("2.90 GiB model.embed_tokens.weight = 151,936 x 5,120 x 4 B")
    assert second.startswith("2.90 GiB lm_head.weight = 151,936 x 5,120 x 4 B")
    assert third.startswith("2.32 GiB cross-entropy, 2 x 1.16 GiB = 1 \N{MULTIPLICATION SIGN} 2,048 ")


def test_the_rule_of_thumb_stands_beside_in_gb_with_lora_left_out_of_its_total(printed, view):
    page = printed(render_estimate, view)
    lines = {line[:28].strip(): line[28:].split() for line in page.splitlines()}
    assert "7.48" in lines["weights"]
    assert "(0.06)" in lines["adapters"]
    assert "(0.00)" in lines["optimizer state on the GPU"]
    assert " ".join(lines["activations"]).endswith("5.00 to 7.00 -0.17")
    assert "13.98 to 16.48" in " ".join(lines["total device"])


def test_it_says_by_how_much_the_rule_of_thumb_differs_and_why(page):
    words = " ".join(page.split())
    assert "mostly weights, +0.59 GB" in words
    assert "14,768,307,200 parameters x 4.05 bit / 8" in words
    assert "fp32 weights alone hold 6.22 GB" in words


def test_what_the_rule_leaves_out_is_named_where_it_is_most_of_the_difference(printed, view):
    grown = [
        msgspec.structs.replace(item, n_bytes=item.n_bytes * 4_000) if item.kind is Kind.ADAPTER else item
        for item in view.ledger.items
    ]
    more = sum(item.n_bytes for item in grown) - sum(item.n_bytes for item in view.ledger.items)
    old = view.ledger.peak
    peak = msgspec.structs.replace(
        old, requested_bytes=old.requested_bytes + more, allocated_bytes=old.allocated_bytes + more,
        reserved_bytes=None, device_bytes=None,
    )  # fmt: skip
    full = msgspec.structs.replace(view.ledger, items=tuple(grown), peak=peak)
    words = " ".join(printed(render_estimate, EstimateView(ledger=full, rule=view.rule)).split())
    assert "mostly LoRA and AdamW" in words
    assert "that its total leaves out" in words


def test_without_a_rule_of_thumb_its_columns_are_gone(printed, ledger):
    page = printed(render_estimate, EstimateView(ledger=ledger))
    assert "rule" not in page.lower()
    assert "13.98 to" not in page


def test_assumed_defaults_stack_versions_assumptions_and_warnings_are_said(page):
    words = " ".join(page.split())
    assert "Stack hf (torch 2.14.1, transformers 5.23.0" in words
    assert "no dora" in words
    assert "optimizer paged_adamw_32bit" in words
    assert "Every position carries a label." in words
    assert "The sequence of 2048 is only an example of a warning." in words


def test_a_field_that_the_job_sets_is_no_assumed_default(printed, ledger):
    job = ledger.job.replace(seq=4096, checkpointing=False)
    page = " ".join(printed(render_estimate, EstimateView(ledger=msgspec.structs.replace(ledger, job=job))).split())
    assumed = page.partition("Assumed defaults:")[2].partition(". ")[0]
    assert "batch 1" in assumed
    assert "seq " not in assumed
    assert "checkpointing" not in assumed


def test_full_fine_tuning_assumes_no_rank_and_no_quantization(printed, ledger):
    full = msgspec.structs.replace(ledger, job=Job(model="m", method="full"))
    page = " ".join(printed(render_estimate, EstimateView(ledger=full)).split())
    assumed = page.partition("Assumed defaults:")[2].partition("standard")[0]
    assert "batch 1" in assumed
    assert not {"rank", "double_quant,", "targets", "dora,"} & set(assumed.split())


def test_the_same_job_under_other_stacks_is_one_line(page):
    assert "The same job by stack, GiB requested at its peak: hf 12.03, plain 12.00." in " ".join(page.split())


def test_a_row_of_cards_has_one_line_a_card(printed, view):
    lines = printed(render_estimate, view, width=120).splitlines()
    small = next(line for line in lines if line.startswith("NVIDIA GeForce RTX 4060"))
    large = next(line for line in lines if line.startswith("NVIDIA GeForce RTX 4090"))
    assert "does not fit" in small
    assert "-6.42 to -5.99" in small
    assert " fits " in large
    assert "+9.09 to +9.53" in large


def test_a_single_card_is_judged_part_by_part_and_the_parts_add_up(printed, read_rows, view):
    page = printed(render_estimate, EstimateView(ledger=view.ledger, verdicts=view.verdicts[:1]))
    assert "NVIDIA GeForce RTX 4060: does not fit, needs at least" in page
    rows = read_rows(page.partition("what the card must hold")[2])
    names = [row.label for row in rows]
    assert names == ["reserved", "CUDA context", "paged optimizer state", "needed", "the card has", "headroom"]
    *parts, need, has, left = rows
    assert (need.low, need.high) == (sum(part.low for part in parts), sum(part.high for part in parts))
    assert (left.low, left.high) == (has.low - need.high, has.low - need.low)


def test_an_unknown_waterline_is_named_and_never_shown_as_zero(printed, read_rows, ledger):
    peak = msgspec.structs.replace(ledger.peak, reserved_bytes=None, device_bytes=None)
    page = printed(render_estimate, EstimateView(ledger=msgspec.structs.replace(ledger, peak=peak)))
    labels = [row.label for row in read_rows(page)]
    assert "total allocated" in labels
    assert not {"total reserved", "total device", "cache", "context"} & set(labels)
    assert "Not known here: reserved (--replay tells) and device (it depends on the card: --gpu)." in " ".join(
        page.split()
    )


def test_what_is_not_fully_known_is_not_said_to_be_below_the_rule_of_thumb(printed, view):
    peak = msgspec.structs.replace(view.ledger.peak, reserved_bytes=None, device_bytes=None)
    unknown = EstimateView(ledger=msgspec.structs.replace(view.ledger, peak=peak), rule=view.rule)
    lines = printed(render_estimate, unknown).splitlines()
    assert next(line for line in lines if line.startswith("buffers")).split()[1:] == ["0.008", "1.50", "to", "2.00"]
    assert next(line for line in lines if line.startswith("total allocated")).rstrip().endswith("13.98 to 16.48")


def test_naming_one_card_completes_the_total_at_the_device(printed, read_rows, view):
    peak = msgspec.structs.replace(view.ledger.peak, device_bytes=None)
    (verdict,) = view.verdicts[:1]
    one_card = EstimateView(ledger=msgspec.structs.replace(view.ledger, peak=peak), verdicts=(verdict,))
    rows = read_rows(printed(render_estimate, one_card))
    need = verdict.need
    assert amounts_of(rows, "total device") == (round(need.low / GIB * 1000), round(need.high / GIB * 1000))
    assert amounts_of(rows, "context")[0] > 0


def test_what_items_do_not_explain_is_a_row_of_its_own(printed, read_rows, ledger):
    missing = 77 * 1024**2
    peak = msgspec.structs.replace(
        ledger.peak,
        requested_bytes=ledger.peak.requested_bytes + missing,
        allocated_bytes=ledger.peak.allocated_bytes + missing,
    )
    short = msgspec.structs.replace(ledger, peak=peak)
    rows = breakdown(short).rows
    assert [row.n_bytes.low for row in rows if row.kind is Kind.UNEXPLAINED] == [missing]
    assert amounts_of(read_rows(printed(render_estimate, EstimateView(ledger=short))), "unexplained") == (75, 75)


def test_no_line_is_wider_than_the_terminal(printed, view):
    for width in (80, 120, 200):
        assert max(len(line.rstrip()) for line in printed(render_estimate, view, width=width).splitlines()) <= width


def test_wide_terminals_show_the_formula_of_each_row_and_narrow_ones_do_not(printed, view):
    formula = "absmax 1,392,640 B, nested absmax"
    assert formula in printed(render_estimate, view, width=200)
    assert formula not in printed(render_estimate, view, width=120)


def test_a_narrow_terminal_loses_no_digit(printed, read_rows, view):
    assert read_rows(printed(render_estimate, view, width=40)) == read_rows(printed(render_estimate, view, width=80))


def test_an_ascii_output_has_the_same_numbers_and_no_foreign_sign(printed, read_rows, view):
    page = printed(render_estimate, view, encoding="ascii")
    assert read_rows(page) == read_rows(printed(render_estimate, view))
    assert "= 1 x 2,048 x 151,936 x 4 B" in page
    assert "?" not in page


def test_a_pipe_and_no_color_get_no_escape_codes(printed, view, monkeypatch):
    assert "\x1b" not in printed(render_estimate, view)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;32m" not in printed(render_estimate, view)
    assert "\x1b[32m" in printed(render_estimate, view)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed(render_estimate, view)


def test_brackets_in_names_are_text_and_not_markup(printed, ledger):
    owner = "[bold]experts[0]"
    largest = msgspec.structs.replace(ledger.items[0], owner=owner)
    page = printed(
        render_estimate, EstimateView(ledger=msgspec.structs.replace(ledger, items=(largest, *ledger.items[1:])))
    )
    assert owner in page
