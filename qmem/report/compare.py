"""Two ledgers side by side: A, B and their difference, kind by kind and waterline by waterline.

It owns the words and the layout.  Which numbers stand beside each other is ``qmem.ledger.comparison``'s to say.
"""

from rich.console import Console

from qmem.ledger import HEADINGS, Interval, Kind, Ledger, Waterline
from qmem.ledger.asked import WHEN
from qmem.ledger.comparison import STEADY_STEP, Comparison, PhaseComparison, compare
from qmem.ledger.differences import Amount, KindDifference, ReadingDifference, change, ends
from qmem.ledger.holdings import OwnerDifference
from qmem.report.amounts import UNKNOWN, Units, full_truth, gib, gib_units, percent, short_truth, signed
from qmem.report.sheets import Line, Sheet, print_sheets
from qmem.units import format_bytes

MOST_HOLDINGS = 8
"""Holdings that are shown one by one, those that differ most; --format json has all."""

STEPS_UP = (Kind.ROUNDING, Kind.CACHE)
"""Kinds that only say how far two counters lie apart."""

_Side = dict[Kind, Units]


def render_comparison(console: Console, a: Ledger, b: Ledger) -> None:
    """Print both ledgers and ``b`` less ``a``: GiB side by side, the difference in exact bytes and per cent of A."""
    print_sheets(console, comparison_sheets(a, b))


def comparison_sheets(a: Ledger, b: Ledger) -> tuple[Sheet, ...]:
    """What was asked, the peak, what differs in it, the phases of each step, and what lies outside torch."""
    compared = compare(a, b)
    headers = _headers(a, b)
    sheets = (
        _question(a, b, compared),
        _peak(compared, headers),
        _holdings("Holdings that differ most at the peaks", compared.peak.holdings),
        _holdings("Named tensors that differ when a phase closes", compared.owners),
        *_steps(compared, headers),
        _outside_torch(compared, headers),
        _counters(compared),
    )
    return tuple(sheet for sheet in sheets if sheet is not None)


def _headers(a: Ledger, b: Ledger) -> tuple[str, ...]:
    sides = [f"{name}\n{short_truth(ledger)}\nGiB" for name, ledger in (("A", a), ("B", b))]
    return (*sides, "B less A\nbytes", "of A\n%")


def _question(a: Ledger, b: Ledger, compared: Comparison) -> Sheet:
    """The instruments, and everything that was asked or ran differently."""
    lines = [
        Line(("instrument", full_truth(a), full_truth(b))),
        *([] if a.model != b.model else [Line(("model", a.model, b.model))]),
        *([Line((WHEN, *(_said(ledger.passport.get(WHEN)) for ledger in (a, b))))] if a.passport or b.passport else []),
    ]
    fields = [field for field in compared.fields if field.name not in ("instrument", "state", "ended")]
    lines += [Line((field.name, _said(field.a), _said(field.b))) for field in fields]
    same = () if fields else ("Model, device, job, stack and versions are the same.",)
    lacks = [
        f"Only {name} has {', '.join(phases)}."
        for name, phases in (("A", compared.only_a), ("B", compared.only_b))
        if phases
    ]
    return Sheet(_verdict(compared), ("", "A", "B"), (), tuple(lines), notes=(*same, *lacks))


def _said(word: str | None) -> str:
    return "not said" if word is None else word


def _verdict(compared: Comparison) -> str:
    """How many numbers differ, and by how much the allocated peak does."""
    known = [number for number in compared.numbers if number.a is not None and number.b is not None]
    n_differ = sum(number.a != number.b for number in known)
    if not n_differ:
        return f"A and B are equal in all {len(known)} numbers that both know"
    allocated = next(reading for reading in compared.peak.readings if reading.waterline == "allocated")
    moved = signed(allocated.change)
    return f"{n_differ} of {len(known)} numbers differ; peak allocated: B less A is {moved} B{_in_percent(allocated)}"


def _in_percent(reading: ReadingDifference) -> str:
    share = percent(reading.a, reading.change)
    return f" ({share} %)" if share else ""


def _peak(compared: Comparison, headers: tuple[str, ...]) -> Sheet:
    """Kinds and waterlines at the two peaks; printed rows add up to the printed totals."""
    peak = compared.peak
    by_waterline = {reading.waterline: reading for reading in peak.readings}
    side_a = _printed([(row.kind, row.a) for row in peak.kinds], {name: row.a for name, row in by_waterline.items()})
    side_b = _printed([(row.kind, row.b) for row in peak.kinds], {name: row.b for name, row in by_waterline.items()})
    lines: list[Line] = []
    for heading in HEADINGS:
        under = [row for row in peak.kinds if row.kind.heading is heading]
        lines += [_heading_line(heading, under, side_a, side_b)] if under else []
        lines += [_kind_line(row, side_a, side_b) for row in under if row.kind is not Kind.UNEXPLAINED]
    torch_totals = [row for row in peak.readings if row.waterline != "device"]
    totals = [Line((f"total {row.waterline}", *_amounts(row.a, row.b)), "bold") for row in torch_totals]
    return Sheet("At the peak", ("",), headers, tuple(lines), tuple(totals), _peak_notes(compared))


def _peak_notes(compared: Comparison) -> tuple[str, ...]:
    peak = compared.peak
    moments = (
        f"Both peak at the {peak.a}" if str(peak.a) == str(peak.b) else f"A peaks at the {peak.a}, B at the {peak.b}"
    )
    scored = (
        "" if peak.scored else ": not the same phase, so kinds are shown here and compared below, where phases close"
    )
    unknown = any(None in (number.a, number.b) for number in peak.numbers)
    return (f"{moments}{scored}.", *([f"{UNKNOWN}: not known to that instrument."] if unknown else []))


def _printed(kinds: list[tuple[Kind, int | None]], totals: dict[Waterline, Amount | None]) -> _Side:
    """The printed amount of each kind on one side, chosen so that rows add up to the totals of their waterlines."""
    lines = {name: total for name, total in totals.items() if isinstance(total, int)}
    known = {kind: n_bytes for kind, n_bytes in kinds if n_bytes is not None}
    requested = {kind: n_bytes for kind, n_bytes in known.items() if kind.waterline == "requested"}
    printed = gib_units(requested, lines["requested"])
    steps: tuple[tuple[Kind, Waterline, Waterline], ...] = (
        (Kind.ROUNDING, "requested", "allocated"),
        (Kind.CACHE, "allocated", "reserved"),
    )
    for kind, lower, upper in steps:
        if kind in known:
            whole = Units.of(lines[upper]).units - Units.of(lines[lower]).units
            printed[kind] = Units(whole, known[kind])
    return printed


def _heading_line(heading: Kind, rows: list[KindDifference], side_a: _Side, side_b: _Side) -> Line:
    """A heading with the sums of what its rows tell; without amounts where a counter is missing."""
    if any(row.change is None and row.kind in STEPS_UP for row in rows):
        return Line((heading.label,), "bold")
    sums = [Units.total([side[row.kind] for row in rows if row.kind in side]) for side in (side_a, side_b)]
    return Line((heading.label, *_printed_amounts(*sums)), "bold")


def _kind_line(row: KindDifference, side_a: _Side, side_b: _Side) -> Line:
    label = f"other {row.kind.label}" if row.kind in HEADINGS else row.kind.label
    return Line((f"  {label}", *_printed_amounts(side_a.get(row.kind), side_b.get(row.kind))))


def _printed_amounts(a: Units | None, b: Units | None) -> tuple[str, ...]:
    exact_a, exact_b = (side.n_bytes if side else None for side in (a, b))
    return (*(str(side) if side else UNKNOWN for side in (a, b)), *_difference(exact_a, exact_b))


def _amounts(a: Amount | None, b: Amount | None) -> tuple[str, ...]:
    return (gib(a), gib(b), *_difference(a, b))


def _difference(a: Amount | None, b: Amount | None) -> tuple[str, str]:
    moved = change(a, b)
    return signed(moved), percent(a, moved)


def _holdings(title: str, rows: tuple[OwnerDifference, ...]) -> Sheet | None:
    if not rows:
        return None
    lines = [Line((_described(row), *map(format_bytes, (row.a, row.b)), signed(row.change))) for row in rows]
    rest = rows[MOST_HOLDINGS:]
    note = f"{len(rest)} smaller differences are left out; --format json has them." if rest else ""
    shown = tuple(lines[:MOST_HOLDINGS])
    return Sheet(title, ("holding",), ("A", "B", "B less A\nbytes"), shown, notes=(note,) if note else ())


def _described(row: OwnerDifference) -> str:
    """``lm_head.weight, fp32 weight, at the prepare``."""
    space = "" if row.space == "gpu" else f" in {row.space} memory"
    when = f", {row.when}" if row.when else ""
    return f"{row.owner}: {row.kind.label}{space}{when}"


def _steps(compared: Comparison, headers: tuple[str, ...]) -> list[Sheet]:
    """Before training, the first step, the second, and the last of both."""
    steps = sorted({phase.step for phase in compared.phases})
    shown = [step for step in steps if step <= STEADY_STEP or step == steps[-1]]
    return [_step(step, [phase for phase in compared.phases if phase.step == step], headers) for step in shown]


def _step(step: int, phases: list[PhaseComparison], headers: tuple[str, ...]) -> Sheet:
    """What the counters say in each phase, and the kinds that begin to differ, or differ otherwise, at its closing."""
    lines: list[Line] = []
    standing: dict[Kind, Amount | None] = {}
    for phase in phases:
        micro = f", micro-step {phase.micro_step}" if phase.micro_step > 1 else ""
        lines += [Line((f"{phase.phase}{micro}",), "bold"), *_reading_lines(phase)]
        kinds = [row for row in phase.kinds if row.change is not None and row.kind not in STEPS_UP]
        lines += [_closing_line(row) for row in kinds if row.change != standing.get(row.kind, 0)]
        standing = {row.kind: row.change for row in kinds}
    numbers = [number for phase in phases for number in phase.numbers]
    n_equal = sum(number.a == number.b for number in numbers)
    note = f"{n_equal} of {len(numbers)} numbers are equal; a kind is shown where its difference changes."
    return Sheet(f"Step {step}" if step else "Before training", ("",), headers, tuple(lines), notes=(note,))


def _reading_lines(phase: PhaseComparison) -> list[Line]:
    """The allocated high water always, every other counter where both have it and it differs."""
    lines = []
    for row in phase.readings:
        is_high_water = row.waterline == "allocated" and row.measure == "peak"
        if is_high_water or (row.change is not None and row.a != row.b):
            when = "at most" if row.measure == "peak" else "closing"
            lines.append(Line((f"  {when}: {row.waterline}", *_amounts(row.a, row.b))))
    return lines


def _closing_line(row: KindDifference) -> Line:
    return Line((f"  closing: {row.kind.label}", *_amounts(row.a, row.b)))


def _outside_torch(compared: Comparison, headers: tuple[str, ...]) -> Sheet | None:
    """Paged memory, of which anything from none to all is on the GPU, and the device's total where it is known."""
    lines = []
    if compared.paged_a or compared.paged_b:
        lines.append(Line(("managed bytes", *_amounts(compared.paged_a, compared.paged_b))))
    device = next((row for row in compared.peak.readings if row.waterline == "device"), None)
    if device is not None:
        lines.append(Line(("total device", gib(device.a), gib(device.b), _span(device.change))))
    if not lines:
        return None
    note = "Managed bytes are in none of torch's totals; on the GPU lies anything from none to all of them."
    return Sheet("Paged memory and the device", ("",), headers, tuple(lines), notes=(note,))


def _counters(compared: Comparison) -> Sheet | None:
    """Numbers of the whole run, where both are runs."""
    rows = [row for row in compared.counters if row.a is not None and row.b is not None]
    lines = [Line((row.name, f"{row.a:,}", f"{row.b:,}", signed(row.change))) for row in rows]
    note = "Bytes, unless the name says otherwise."
    return Sheet("The whole run", ("",), ("A", "B", "B less A"), tuple(lines), notes=(note,)) if lines else None


def _span(moved: Amount | None) -> str:
    if isinstance(moved, Interval):
        low, high = ends(moved)
        return f"{gib(low, sign=True)} to {gib(high, sign=True)} GiB"
    return signed(moved)
