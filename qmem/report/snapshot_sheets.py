"""A snapshot's answer as sheets: its moments, who held the memory, the failure, what was free, the replays.

It owns the words and the order; it computes nothing but the rounding that keeps printed sums.
"""

from collections.abc import Iterator

from qmem.ledger import Interval
from qmem.report.breakdown import ROW_SCALE
from qmem.report.rounding import share_units, to_units
from qmem.report.sheets import Line, Sheet
from qmem.report.text import listed, thousandths
from qmem.snapshot.answer import Answer, Holder, Moment, Replayed, SegmentUse, Use, When
from qmem.snapshot.frames import THROUGH
from qmem.snapshot.history import PrivatePool
from qmem.units import GIB, format_bytes

LARGEST = 12
"""Holders that stand in a line of their own; the others share one."""
SEGMENTS = 8
"""The same of segments."""
NOTHING = Use(0, 0)
_MEANING = (
    "By the innermost line outside torch, and the line of torch that it came through. Rounding: blocks are multiples "
    "of 512 B, and a rest of up to 1 MiB is not split off. Cache: reserved and not allocated."
)
_WORDS: dict[When, str] = {"peak": "at the peak", "out of memory": "when memory ran out", "end": "at the end"}


def snapshot_sheets(answer: Answer, largest: int = LARGEST) -> tuple[Sheet, ...]:
    """All that a reader asks of a snapshot; ``largest`` holders are named."""
    return (
        _title(answer),
        _held(answer, largest),
        *_failure(answer),
        *_free(answer),
        *_replays(answer),
        *_said(answer),
    )


def _title(answer: Answer) -> Sheet:
    said = [f"allocator settings: {answer.settings}", _history(answer)]
    if len(answer.devices) > 1:
        others = [f"{device} ({_amount(n)} GiB)" for device, n in answer.devices.items() if device != answer.device]
        said.append(f"other devices, with what is reserved there: {', '.join(others)}; --device shows one")
    said += [_apart(pool) for pool in answer.private_pools]
    return Sheet(f"Device {answer.device}", notes=tuple(said))


def _apart(pool: PrivatePool) -> str:
    return (
        f"apart, in none of these figures: private pool {pool.pool_id} (CUDA graphs, MemPool), "
        f"{_amount(pool.reserved_bytes)} GiB reserved and {_amount(pool.allocated_bytes)} allocated at the end, "
        f"segments: {pool.n_segments}"
    )


def _history(answer: Answer) -> str:
    recording = answer.recording
    if recording is None:
        return "history: none was recorded"
    if recording.is_whole:
        return f"history: {recording.n_events:,} events, from the first segment on"
    held, reserved = _amount(recording.begin_held_bytes), _amount(recording.begin_reserved_bytes)
    return f"history: {recording.n_events:,} events, from {held} GiB held and {reserved} GiB reserved on"


def _held(answer: Answer, largest: int) -> Sheet:
    """Who holds what: the rows add up to what is requested, with rounding and cache to what is reserved."""
    shown = _distinct(answer)
    named, rest = answer.holders[:largest], answer.holders[largest:]
    labels = [*(holder.where for holder in named), *([f"{len(rest):,} more"] if rest else [])]
    counts = [sum(_use(holder, shown[0][0].when).count for holder in row) for row in _rows(answer, largest)]
    columns = [_column(answer, moments[0], largest) for moments in shown]
    cells = list(zip([f"{n:,}" if n else "" for n in [*counts, sum(counts)]] + [""] * 4, *columns, strict=True))
    totals = ("requested", "rounding", "allocated", "cache", "reserved")
    headers = [f"{' and '.join(moment.when for moment in moments)}\nGiB" for moments in shown]
    return Sheet(
        "What held it",
        ("held by",),
        (f"count,\n{shown[0][0].when}", *headers),
        lines=tuple(Line((label, *row)) for label, row in zip(labels, cells, strict=False)),
        totals=tuple(
            Line((name, *row), "" if name in ("rounding", "cache") else "bold")
            for name, row in zip(totals, cells[len(labels) :], strict=True)
        ),
        notes=(_MEANING,),
    )


def _rows(answer: Answer, largest: int) -> list[tuple[Holder, ...]]:
    """The holders of each row: one, but for the last row, which has the rest."""
    rest = answer.holders[largest:]
    return [*((holder,) for holder in answer.holders[:largest]), *([rest] if rest else [])]


def _distinct(answer: Answer) -> list[list[Moment]]:
    """The moments in the order of time; those with the same holdings share a column."""
    shown: list[list[Moment]] = []
    for moment in answer.moments:
        if shown and _same(answer, shown[-1][0], moment):
            shown[-1].append(moment)
        else:
            shown.append([moment])
    return shown


def _same(answer: Answer, one: Moment, other: Moment) -> bool:
    figures = [(m.requested_bytes, m.allocated_bytes, m.reserved_bytes) for m in (one, other)]
    return figures[0] == figures[1] and all(_use(h, one.when) == _use(h, other.when) for h in answer.holders)


def _use(holder: Holder, when: When) -> Use:
    return holder.uses.get(when, NOTHING)


def _column(answer: Answer, moment: Moment, largest: int) -> list[str]:
    """The amount of each row and total, so that the printed amounts add up."""
    rows = [sum(_use(holder, moment.when).n_bytes for holder in row) for row in _rows(answer, largest)]
    sums = (moment.requested_bytes, moment.allocated_bytes, moment.reserved_bytes)
    requested, allocated, reserved = (to_units(n_bytes, GIB, ROW_SCALE) for n_bytes in sums)
    units = share_units(rows, GIB, ROW_SCALE, requested)
    return [
        *(_shown(unit, n_bytes) if n_bytes else "" for unit, n_bytes in zip(units, rows, strict=True)),
        _shown(requested, sums[0]),
        _shown(allocated - requested, sums[1] - sums[0]),
        _shown(allocated, sums[1]),
        _shown(reserved - allocated, sums[2] - sums[1]),
        _shown(reserved, sums[2]),
    ]


def _shown(units: int, n_bytes: int) -> str:
    return thousandths(Interval(units, units), Interval(n_bytes, n_bytes))


def _amount(n_bytes: int) -> str:
    return _shown(to_units(n_bytes, GIB, ROW_SCALE), n_bytes)


def _failure(answer: Answer) -> Iterator[Sheet]:
    short = answer.shortage
    if short is None:
        return
    title = "Out of memory" if short.n_failed == 1 else f"Out of memory, {short.n_failed:,} times; the last"
    figures = {
        f"asked for by {short.request_by}": short.request_bytes,
        "the driver had": short.device_free_bytes,
        "it had too little of": short.missing_bytes,
        "of that, fragmentation (reserved, unallocated)": short.fragmentation_bytes,
        "missing without any fragmentation": short.beyond_bytes,
    }
    lines = tuple(Line((label, _amount(n_bytes))) for label, n_bytes in figures.items())
    yield Sheet(title, ("",), ("GiB",), lines, notes=(_verdict(answer),))


def _verdict(answer: Answer) -> str:
    short = answer.shortage
    assert short is not None, "there is a failure to speak of"
    free, piece = format_bytes(short.free_bytes), format_bytes(short.largest_free_bytes)
    pieces = f"{free} were reserved and unallocated, the largest piece {piece}."
    if not short.missing_bytes:
        return f"The driver had enough: a memory limit of the process (its memory fraction) refused. {pieces}"
    if not short.beyond_bytes:
        return f"Fragmentation decided it: {pieces} In one piece with what the driver had, it would have been enough."
    share = short.fragmentation_bytes / short.missing_bytes
    return f"Fragmentation did not decide it: it was {share:.1%} of what was missing. {pieces}"


def _free(answer: Answer) -> Iterator[Sheet]:
    found = answer.fragmentation
    if not found.segments:
        return
    shown, rest = found.segments[:SEGMENTS], found.segments[SEGMENTS:]
    lines = [Line(_segment_cells(use)) for use in shown]
    if rest:
        lines.append(Line((f"{len(rest):,} more", "", *_sizes(rest))))
    whole = f"{_amount(found.whole_bytes)} GiB lie in segments that nothing is held in: empty_cache() gives them back."
    kept = "Kept by: who holds the largest block of the segment."
    yield Sheet(
        f"Reserved and not allocated, {_WORDS[found.when]}",
        ("segment", "kept by"),
        ("holds", "GiB", "free", "largest\npiece"),
        tuple(lines),
        (Line(("all", "", *_sizes(found.segments)), "bold"),),
        ((whole, kept) if found.whole_bytes else (kept,)),
    )


def _segment_cells(use: SegmentUse) -> tuple[str, ...]:
    kind = "expandable" if use.expandable else "small" if use.small else "large"
    stream = f", stream {use.stream}" if use.stream else ""
    return (f"{use.address:#x} {kind}{stream}", use.kept_by.partition(THROUGH)[0], *_sizes((use,)))


def _sizes(uses: tuple[SegmentUse, ...]) -> tuple[str, ...]:
    sums = (sum(use.n_bytes for use in uses), sum(use.free_bytes for use in uses))
    largest = max(use.largest_free_bytes for use in uses)
    return (f"{sum(use.n_held for use in uses):,}", *map(_amount, sums), _amount(largest))


def _replays(answer: Answer) -> Iterator[Sheet]:
    fidelity = answer.fidelity
    if fidelity is None:
        return
    peak = next(moment for moment in answer.moments if moment.when == "peak")
    recorded = Line(("as recorded", *map(_amount, (fidelity.recorded_peak_bytes, fidelity.recorded_end_bytes)), "", ""))
    yield Sheet(
        "The history replayed",
        ("settings",),
        ("reserved\npeak", "reserved\nend", "allocated\npeak", "retries"),
        (
            Line((*recorded.cells[:3], _amount(peak.allocated_bytes), f"{answer.replays[0].n_retries:,}")),
            *(Line(_replay_cells(run)) for run in answer.replays),
        ),
        notes=(_truth(answer), *(_gain(answer, run) for run in answer.replays if not run.is_own)),
    )


def _replay_cells(run: Replayed) -> tuple[str, ...]:
    name = f"{run.settings} (its own)" if run.is_own else run.settings
    figures = (run.peak_reserved_bytes, run.reserved_bytes, run.peak_allocated_bytes)
    return (name, *map(_amount, figures), "" if run.is_own else f"{run.n_retries:,}")


def _truth(answer: Answer) -> str:
    fidelity = answer.fidelity
    assert fidelity is not None, "there are replays"
    if fidelity.is_exact:
        return "With its own settings the replay reserves what was recorded, byte for byte, at every event."
    found = [f"{fidelity.allocated_difference_bytes:+,} bytes allocated at the end"]
    if fidelity.first_difference_event is not None:
        found.append(
            f"up to {fidelity.largest_difference_bytes:+,} bytes reserved, first at event "
            f"{fidelity.first_difference_event:,}"
        )
    differences = f"With its own settings the replay differs from what was recorded: {listed(found)}."
    return f"{differences} The others may be as far off."


def _gain(answer: Answer, run: Replayed) -> str:
    """What the settings would have given at the peak, and whether what failed would have been served."""
    assert answer.fidelity is not None, "there are replays"
    if run.failed_event is not None:
        return f"{run.settings}: runs out of memory at event {run.failed_event:,}, where the process did not."
    gain = answer.fidelity.recorded_peak_bytes - run.peak_reserved_bytes
    amount = f"{format_bytes(abs(gain))} {'less' if gain > 0 else 'more'}" if gain else "as much"
    words = f"{run.settings}: {amount} reserved at the peak"
    if answer.shortage is None or run.n_served is None:
        return f"{words}."
    if answer.shortage.n_failed == 1:
        return f"{words}; the request that failed {'is' if run.n_served else 'is not'} served."
    return f"{words}; of the {answer.shortage.n_failed:,} requests that failed {run.n_served:,} are served."


def _said(answer: Answer) -> Iterator[Sheet]:
    for title, sentences in (("Assumptions", answer.assumptions), ("Warnings", answer.warnings)):
        if sentences:
            yield Sheet(title, notes=sentences)
