"""One stored ledger as sheets: the question, its peak kind by kind, its largest holdings, the phases of each step."""

from qmem.job import Job
from qmem.ledger import WATERLINES, Item, Ledger, Moment, Reading, Waterline
from qmem.ledger.differences import Measure
from qmem.report.amounts import UNKNOWN, full_truth, gib, short_truth
from qmem.report.breakdown import Total, breakdown
from qmem.report.sheets import Line, Sheet
from qmem.report.text import thousandths
from qmem.units import format_bytes

LARGEST = 8


def ledger_sheets(ledger: Ledger) -> tuple[Sheet, ...]:
    """Everything a reader of a stored ledger asks first."""
    at_peak = _largest(ledger, ledger.peak.moment, "Its largest holdings")
    sheets = (_question(ledger), *run_sheets(ledger), _peak(ledger), at_peak)
    return (*sheets, *end_sheets(ledger), *phase_sheets(ledger), *_said(ledger))


def run_sheets(ledger: Ledger) -> tuple[Sheet, ...]:
    """What only a run has: how it ended and how far it is to be trusted, its passport, its counters."""
    if not (ledger.passport or ledger.counters):
        return ()
    lines = [Line(("what", full_truth(ledger))), *(Line(entry) for entry in ledger.passport.items())]
    lines += [Line((name, f"{number:,}")) for name, number in ledger.counters.items()]
    return (
        Sheet("The run", ("", ""), lines=tuple(lines), notes=("Counters are bytes, unless the name says otherwise.",)),
    )


def end_sheets(ledger: Ledger) -> tuple[Sheet, ...]:
    """What held the memory where it ended; none of a ledger that did not run out of it."""
    if ledger.ended != "out of memory" or not ledger.readings:
        return ()
    end = max((reading.moment for reading in ledger.readings), key=_moment_tick)
    return (_largest(ledger, end, f"Where memory ended, the {end}: the largest holdings"),)


def phase_sheets(ledger: Ledger) -> tuple[Sheet, ...]:
    """The readings by phase: at most and closing at each waterline; a sheet for each step, none without readings."""
    steps = sorted({reading.moment.step for reading in ledger.readings})
    return tuple(_step(ledger, step) for step in steps)


def _question(ledger: Ledger) -> Sheet:
    said = {
        "instrument": full_truth(ledger),
        "device": ledger.device,
        "stack": _stack(ledger),
        "parameters": f"{ledger.parameters.total:,}",
        "trained": f"{ledger.parameters.trainable:,}",
        "versions": ", ".join(f"{library} {version}" for library, version in ledger.versions.items()),
    }
    lines = [Line((name, words)) for name, words in said.items() if words]
    return Sheet(f"{ledger.model}: {ledger.watched or _asked(ledger.job)}", ("", "this ledger"), lines=tuple(lines))


def _asked(job: Job) -> str:
    adapter = f", rank {job.rank}" if job.has_adapter else ""
    base = job.effective_quant if job.effective_quant != "none" else job.dtype
    accumulated = f" x {job.grad_accum} micro-steps" if job.grad_accum > 1 else ""
    return f"{job.method} on {base}{adapter}, {job.batch} x {job.seq} tokens{accumulated}, {job.optimizer}"


def _stack(ledger: Ledger) -> str:
    if ledger.watched:
        return ""
    facts = ", ".join(f"{name}={value}" for name, value in ledger.job.facts.items())
    return f"{ledger.job.stack} with {facts}" if facts else ledger.job.stack


def _peak(ledger: Ledger) -> Sheet:
    rows = breakdown(ledger)
    lines = []
    for heading in rows.headings():
        amount = thousandths(rows.units_under(heading), rows.bytes_under(heading))
        lines.append(Line((heading.label, amount), "bold"))
        under = [row for row in rows.under(heading) if row.label != heading.label]
        lines += [Line((f"  {row.label}", thousandths(row.units, row.n_bytes))) for row in under]
    totals = tuple(map(_total, rows.totals))
    paged = _paged_note(ledger)
    headers = (f"{short_truth(ledger)}\nGiB",)
    return Sheet(f"At the peak, the {ledger.peak.moment}", ("",), headers, tuple(lines), totals, paged)


def _total(total: Total) -> Line:
    return Line((f"total {total.waterline}", thousandths(total.units, total.n_bytes)), "bold")


def _paged_note(ledger: Ledger) -> tuple[str, ...]:
    if not ledger.paged_bytes:
        return ()
    amount = f"{ledger.paged_bytes:,} bytes ({format_bytes(ledger.paged_bytes)})"
    return (f"Managed memory: {amount}, in none of torch's totals; on the GPU lies anything from none to all of it.",)


def _largest(ledger: Ledger, moment: Moment, title: str) -> Sheet:
    largest = sorted(ledger.at(moment), key=_n_bytes, reverse=True)[:LARGEST]
    lines = tuple(Line((item.owner, item.because, format_bytes(item.n_bytes))) for item in largest)
    return Sheet(title, ("holding", "because"), ("",), lines)


def _n_bytes(item: Item) -> int:
    return item.n_bytes


def _step(ledger: Ledger, step: int) -> Sheet:
    readings = [reading for reading in ledger.readings if reading.moment.step == step]
    waterlines = [name for name in WATERLINES if any(reading.waterline == name for reading in readings)]
    by_phase: dict[str, list[Reading]] = {}
    for reading in sorted(readings, key=_tick):
        micro = f", micro-step {reading.moment.micro_step}" if step and reading.moment.micro_step > 1 else ""
        by_phase.setdefault(f"{reading.moment.phase}{micro}", []).append(reading)
    lines = [line for phase, found in by_phase.items() for line in _phase_lines(phase, found, waterlines)]
    truth = ", ".join(short_truth(ledger).split())
    title = f"Step {step}, GiB, {truth}" if step else f"Before training, GiB, {truth}"
    return Sheet(title, ("phase", "when"), tuple(waterlines), tuple(lines))


def _tick(reading: Reading) -> int:
    return reading.moment.tick


def _moment_tick(moment: Moment) -> int:
    return moment.tick


def _phase_lines(phase: str, readings: list[Reading], waterlines: list[Waterline]) -> list[Line]:
    """What the counters of a phase say, at most and when it closes."""
    said = {(reading.waterline, reading.measure): gib(reading.n_bytes) for reading in readings}
    words: tuple[tuple[Measure, str, str], ...] = (("peak", phase, "at most"), ("current", "", "closing"))
    lines = []
    for measure, first, when in words:
        cells = [said.get((name, measure), UNKNOWN) for name in waterlines]
        lines += [Line((first, when, *cells))] if set(cells) != {UNKNOWN} else []
    return lines


def _said(ledger: Ledger) -> tuple[Sheet, ...]:
    """Assumptions and warnings."""
    notes = {"Assumptions": ledger.assumptions, "Warnings": ledger.warnings}
    return tuple(Sheet(title, notes=sentences) for title, sentences in notes.items() if sentences)
