"""``qmem estimate`` on a terminal: the table, the peak, the verdict and what was assumed.

It owns the layout and the words between the numbers.  It computes nothing: amounts come from the ledger by way of
``breakdown``, the rule of thumb's from ``comparison``.
"""

from typing import NamedTuple

from msgspec import structs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmem.job import Job, assumed_defaults
from qmem.ledger import WATERLINES, Doubt, Instrument, Interval, Item, Kind, Ledger, Waterline
from qmem.planner.verdict import SAFETY_MARGIN
from qmem.report.breakdown import Breakdown, Row, Total, breakdown
from qmem.report.comparison import Beside, beside, beside_total, why_they_differ
from qmem.report.tables import add_numbers, add_texts, new_table, print_table
from qmem.report.text import Spell, listed, spelling, thousandths
from qmem.report.verdicts import print_verdicts
from qmem.report.view import EstimateView
from qmem.units import GIB, format_bytes

BARS_FROM_WIDTH = 100
FORMULAS_FROM_WIDTH = 150
_TRUTH: dict[Instrument, str] = {
    "estimate": "a walk through the step on paper; nothing was run",
    "phantom profile": "simulated: the real program without a GPU",
    "profile": "measured",
}

_TOLD_BY: dict[Waterline, str] = {"reserved": " (--replay tells)", "device": " (it depends on the card: --gpu)"}
"""What an estimate would need to know a waterline."""

ADAPTER_FIELDS = ("rank", "alpha", "dropout", "targets", "bias", "rslora", "dora")
QUANT_FIELDS = ("double_quant", "block_size", "quant_storage")
"""Fields of a job that mean nothing without an adapter, or without quantization."""

BAR_WIDTH = 16
LARGEST = 3

_MEANING: dict[Waterline, str] = {
    "requested": "sums what tensors ask for",
    "allocated": "adds rounding (torch.cuda.max_memory_allocated)",
    "reserved": "adds the allocator's cache (torch.cuda.max_memory_reserved)",
    "device": "adds the CUDA context and resident paged state (what nvidia-smi shows)",
}


class _Page(NamedTuple):
    """Where to print, what is printed, and how its signs are spelled."""

    console: Console
    view: EstimateView
    rows: Breakdown
    spell: Spell

    def print(self, text: str, style: str = "") -> None:
        """A paragraph."""
        self.console.print(Text(self.spell(text), style=style))

    def print_points(self, title: str, points: list[str], style: str = "") -> None:
        """A title and indented points, each wrapped under itself; nothing where there are no points."""
        if not points:
            return
        self.console.print()
        self.print(title, "bold")
        grid = Table.grid(padding=(0, 1))
        for point in points:
            grid.add_row(" ", "-", Text(self.spell(point), style=style))
        self.console.print(grid)


def render_estimate(console: Console, view: EstimateView) -> None:
    """Print the view to ``console``, whose width, colours and encoding are honoured.

    Amounts of the ledger are GiB, the rule of thumb's are GB; the printed rows add up to the printed totals.
    """
    page = _Page(console, view, breakdown(_on_card(view)), spelling(console.encoding))
    _print_title(page)
    _print_table(page)
    _print_peak(page)
    print_verdicts(console, view.ledger, view.verdicts, page.spell)
    _print_notes(page)


def _on_card(view: EstimateView) -> Ledger:
    """The ledger, with what its one card must hold where the instrument itself knows no device total."""
    ledger = view.ledger
    if ledger.peak.device_bytes is not None or len(view.verdicts) != 1:
        return ledger
    (verdict,) = view.verdicts
    parts = [part.n_bytes for part in verdict.parts if part.name != SAFETY_MARGIN]
    device = Interval(sum(part.low for part in parts), sum(part.high for part in parts))
    return structs.replace(ledger, peak=structs.replace(ledger.peak, device_bytes=device))


def _print_title(page: _Page) -> None:
    ledger = page.view.ledger
    page.print(f"{ledger.model}: {ledger.watched or _job_line(ledger.job)}", "bold")
    total, trainable = ledger.parameters.total, ledger.parameters.trainable
    share = f" ({trainable / total:.4%})" if total else ""
    page.print(f"{total:,} parameters, {trainable:,} trained{share}")
    page.print(f"instrument: {ledger.instrument}, {_TRUTH[ledger.instrument]}{_doubts(ledger)}")


def _doubts(ledger: Ledger) -> str:
    """That a result rests on something, or is not whole; nothing of one that is clean and complete."""
    state = f"; {ledger.state}" if ledger.state != "clean" else ""
    ended = f"; it ended early: {ledger.ended}" if ledger.ended != "complete" else ""
    return state + ended


def _job_line(job: Job) -> str:
    adapter = f", rank {job.rank}" if job.has_adapter else ""
    base = job.effective_quant if job.effective_quant != "none" else job.dtype
    accumulated = f" x {job.grad_accum} micro-steps" if job.grad_accum > 1 else ""
    return f"{job.method} on {base}{adapter}, {job.batch} x {job.seq} tokens{accumulated}, {job.optimizer}"


def _print_table(page: _Page) -> None:
    wide, widest = (page.console.width >= width for width in (BARS_FROM_WIDTH, FORMULAS_FROM_WIDTH))
    table = _new_table(page, bars=wide, formulas=widest)
    for heading in page.rows.headings():
        table.add_row(*_heading_cells(page, heading), *_extras(page, None, wide, widest), style="bold")
        for row in page.rows.under(heading) if heading is not Kind.UNEXPLAINED else ():
            table.add_row(*_row_cells(page, row), *_extras(page, row, wide, widest))
    table.add_section()
    for total in page.rows.totals:
        table.add_row(*_total_cells(page, total), *_total_extras(total, wide, widest), style="bold")
    page.console.print()
    print_table(page.console, table)
    _print_footnotes(page, meanings=not widest)


def _new_table(page: _Page, *, bars: bool, formulas: bool) -> Table:
    ledger = page.view.ledger
    state = f"{ledger.state}\n" if ledger.state != "clean" else ""
    table = new_table([f"at the peak:\n{ledger.peak.moment}"], [f"{ledger.instrument}\n{state}GiB"])
    if page.view.rule:
        add_numbers(table, ["rule of thumb\nGB", f"{'above rule' if bars else 'differs'}\nGB"])
    if bars:
        table.add_column("share", width=BAR_WIDTH, no_wrap=True)
    if formulas:
        add_texts(table, ["its largest holding"])
    return table


def _heading_cells(page: _Page, heading: Kind) -> list[str]:
    amount = thousandths(page.rows.units_under(heading), page.rows.bytes_under(heading))
    return [heading.label, amount, *_beside_cells(page, beside(heading, page.rows, page.view.rule))]


def _row_cells(page: _Page, row: Row) -> list[str]:
    # The rule's adapter lines speak of what is on the GPU, never of a second row of the same kind.
    on_gpu = row.waterline == "requested" and row.kind.heading is not row.kind
    line = beside(row.kind, page.rows, page.view.rule) if on_gpu else Beside("", "")
    return [f"  {row.label}", thousandths(row.units, row.n_bytes), *_beside_cells(page, line)]


def _total_cells(page: _Page, total: Total) -> list[str]:
    line = beside_total(page.rows, page.view.rule) if total is page.rows.totals[-1] else Beside("", "")
    return [f"total {total.waterline}", thousandths(total.units, total.n_bytes), *_beside_cells(page, line)]


def _beside_cells(page: _Page, line: Beside) -> list[str]:
    return [line.amount, line.excess] if page.view.rule else []


def _extras(page: _Page, row: Row | None, bars: bool, formulas: bool) -> list[str]:
    """The cells that only wide terminals have room for: a bar, and the row's largest holding."""
    bar = [_bar(page, row)] if bars else []
    return bar + ([page.spell(_largest_holding(page, row))] if formulas else [])


def _total_extras(total: Total, bars: bool, formulas: bool) -> list[str]:
    return [""] * bars + ([_MEANING[total.waterline]] if formulas else [])


def _bar(page: _Page, row: Row | None) -> str:
    top = page.rows.totals[-1].n_bytes.high
    length = round(BAR_WIDTH * row.n_bytes.high / top) if row and top else 0
    return page.spell("█" * length)


def _largest_holding(page: _Page, row: Row | None) -> str:
    if row is None or row.waterline != "requested":
        return ""
    ledger = page.view.ledger
    of_kind = [item for item in ledger.at(ledger.peak.moment) if item.kind is row.kind]
    largest = max(of_kind, key=_n_bytes, default=None)
    return _described(largest) if largest else ""


def _described(item: Item) -> str:
    """``2.90 GiB model.embed_tokens.weight = 151,936 x 5,120 x 4 B``, a series with its count and the bytes of each."""
    because = f" = {item.because}" if item.because else ""
    if item.count > 1:
        because = f", {item.count} x {format_bytes(item.n_bytes // item.count)}{because}"
    return f"{format_bytes(item.n_bytes)} {item.owner}{because}"


def _n_bytes(item: Item) -> int:
    return item.n_bytes


def _print_footnotes(page: _Page, *, meanings: bool) -> None:
    sentences = []
    if meanings:
        meanings_in_order = [f"{total.waterline} {_MEANING[total.waterline]}" for total in page.rows.totals]
        sentences.append(f"The total {', '.join(meanings_in_order)}.")
    told_by = _TOLD_BY if page.view.ledger.instrument == "estimate" else {}
    unknown = [f"{name}{told_by.get(name, '')}" for name in WATERLINES if page.rows.total(name) is None]
    if unknown:
        sentences.append(f"Not known here: {listed(unknown)}.")
    if page.view.rule:
        sentences.append("In parentheses: not in the rule's total, as its source adds. Its buffers include overhead.")
    page.print(" ".join(sentences), "dim")


def _print_peak(page: _Page) -> None:
    """The moment of the peak and what holds most of it."""
    ledger = page.view.ledger
    largest = sorted(ledger.at(ledger.peak.moment), key=_n_bytes, reverse=True)[:LARGEST]
    title = f"The peak is at the {ledger.peak.moment}. Its largest holdings:"
    page.print_points(title, [_described(item) for item in largest])


def _print_notes(page: _Page) -> None:
    ledger = page.view.ledger
    notes = []
    if page.view.other_stacks:
        notes.append(_other_stacks(ledger, page.view.other_stacks))
    if page.view.rule:
        notes.append(why_they_differ(page.rows, page.view.rule))
    if ledger.peak.doubt:
        notes.append(_doubt(ledger.peak.doubt))
    defaults = [] if ledger.watched else [f"Assumed defaults: {_defaults(ledger.job)}."]
    notes += [_stack(ledger), *defaults, *ledger.assumptions]
    page.print_points("Behind the numbers", notes)
    page.print_points("Warnings", list(ledger.warnings), "yellow")


def _doubt(doubt: Doubt) -> str:
    """Where the measured peak lies, if this job's error is one of those that were seen."""
    interval = doubt.allocated_bytes
    if interval is None:
        return f"How far the peak may be off is {doubt.because}."
    where = [f"allocated {_range(interval)}"]
    if doubt.reserved_bytes is not None:
        where.append(f"reserved {_range(doubt.reserved_bytes)}")
    return f"Measured, the peak would lie at {' and '.join(where)} GiB: {doubt.because}."


def _range(interval: Interval) -> str:
    low, high = (f"{n_bytes / GIB:.2f}" for n_bytes in (interval.low, interval.high))
    return low if low == high else f"{low} to {high}"


def _other_stacks(ledger: Ledger, others: dict[str, int]) -> str:
    """The same job under other stacks, by what its tensors ask for, which no allocator blurs."""
    peaks = {ledger.job.stack: ledger.peak.requested_bytes, **others}
    by_stack = ", ".join(f"{stack} {n_bytes / GIB:.2f}" for stack, n_bytes in peaks.items())
    return f"The same job by stack, GiB requested at its peak: {by_stack}."


def _stack(ledger: Ledger) -> str:
    versions = ", ".join(f"{library} {version}" for library, version in ledger.versions.items())
    facts = ", ".join(f"{name}={value}" for name, value in ledger.job.facts.items())
    overridden = f", with {facts}" if facts else ""
    what = "kernels and workspaces of" if ledger.instrument == "estimate" else "run on"
    card = f"; {what} {ledger.device}" if ledger.device else ""
    name = ledger.stack["title"] if ledger.watched else f"Stack {ledger.job.stack}"
    return f"{name} ({versions}){overridden}{card}."


def _defaults(job: Job) -> str:
    """The defaults that mean something for this job; a field that is empty by default says nothing."""
    silent = (() if job.has_adapter else ADAPTER_FIELDS) + (() if job.effective_quant != "none" else QUANT_FIELDS)
    assumed = assumed_defaults(job).items()
    named = {name: value for name, value in assumed if name not in silent and value not in (None, "", (), {})}
    return ", ".join(_assumed(name, value) for name, value in named.items())


def _assumed(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"
