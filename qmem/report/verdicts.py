"""Verdicts on a terminal: one card part by part, or a row of cards.  It judges nothing."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmem.ledger import Interval, Ledger
from qmem.planner import Verdict
from qmem.planner.verdict import CACHE_PRIOR_PERCENT, SAFETY_MARGIN, Outcome
from qmem.report.breakdown import ROW_SCALE
from qmem.report.rounding import share_interval_units, to_units
from qmem.report.tables import add_texts, new_table, print_table
from qmem.report.text import Spell, interval_gib, thousandths
from qmem.units import GIB

REASONS_FROM_WIDTH = 110

_STYLE: dict[Outcome, str] = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def print_verdicts(console: Console, ledger: Ledger, verdicts: tuple[Verdict, ...], spell: Spell) -> None:
    """One verdict with its parts, several as a table with one line a card, none as nothing."""
    if not verdicts:
        return
    console.print()
    if len(verdicts) == 1:
        _print_one(console, verdicts[0], spell)
    else:
        _print_row_of_cards(console, verdicts, spell)
    console.print(Text(spell(_note(ledger, verdicts)), style="dim"))


def _print_one(console: Console, verdict: Verdict, spell: Spell) -> None:
    headline = Text(spell(f"{verdict.card}: "), style="bold")
    headline.append(_short_outcome(verdict), style=f"bold {_STYLE[verdict.outcome]}")
    headline.append(spell(f", {verdict.because}"))
    console.print(headline)
    table = new_table(["what the card must hold"], ["GiB"])
    add_texts(table, ["where from"])
    units = share_interval_units([part.n_bytes for part in verdict.parts], GIB, ROW_SCALE)
    for part, amount in zip(verdict.parts, units, strict=True):
        table.add_row(spell(part.name), thousandths(amount, part.n_bytes), spell(part.because))
    table.add_section()
    _add_balance(table, verdict, Interval(sum(amount.low for amount in units), sum(amount.high for amount in units)))
    print_table(console, table)


def _add_balance(table: Table, verdict: Verdict, need_units: Interval) -> None:
    """Needed, available, and what is left: the last is the difference of the two as printed."""
    has = Interval(verdict.capacity_bytes, verdict.capacity_bytes)
    has_units = to_units(verdict.capacity_bytes, GIB, ROW_SCALE)
    left_units = Interval(has_units - need_units.high, has_units - need_units.low)
    table.add_row("needed", thousandths(need_units, verdict.need), "on the device", style="bold")
    source = "a sibling card's figure" if verdict.capacity_unsure else "as its driver reports it"
    table.add_row("the card has", thousandths(Interval(has_units, has_units), has), source)
    table.add_row("headroom", thousandths(left_units, verdict.headroom), "no margin is hidden in it", style="bold")


def _print_row_of_cards(console: Console, verdicts: tuple[Verdict, ...], spell: Spell) -> None:
    reasons = console.width >= REASONS_FROM_WIDTH
    table = new_table(["card"], ["has\nGiB", "headroom\nGiB"])
    add_texts(table, ["verdict", "because"] if reasons else ["verdict"])
    for verdict in verdicts:
        unsure = "?" if verdict.capacity_unsure else ""
        amounts = [f"{unsure}{verdict.capacity_bytes / GIB:.2f}", interval_gib(verdict.headroom, sign=True)]
        outcome = Text(_short_outcome(verdict), style=_STYLE[verdict.outcome])
        because = [Text(spell(verdict.because))] if reasons else []
        table.add_row(spell(verdict.card), *amounts, outcome, *because)
    print_table(console, table)


def _short_outcome(verdict: Verdict) -> str:
    return f"{verdict.outcome} ({verdict.doubt})" if verdict.doubt else verdict.outcome


def _note(ledger: Ledger, verdicts: tuple[Verdict, ...]) -> str:
    """What a reader must know to trust the verdicts."""
    margins = [part.n_bytes.low for part in verdicts[0].parts if part.name == SAFETY_MARGIN]
    margin = f"a safety margin of {margins[0] / GIB:.2f} GiB" if margins else "no safety margin"
    paged = ", paged state (none to all of it)" if ledger.paged_bytes else ""
    held = "reserved peak"
    if ledger.peak.reserved_bytes is None:
        held = f"allocated peak (a lower bound), allocator's cache (unknown: 0 to {CACHE_PRIOR_PERCENT} %)"
    notes = [f"Need = {held}, CUDA context (a prior){paged}, {margin}."]
    if any(verdict.capacity_unsure for verdict in verdicts):
        notes.append("?: a sibling card's capacity, for want of a reading.")
    if any(verdict.card != ledger.device for verdict in verdicts):
        notes.append("One peak judges all cards; --gpu takes the kernels and workspaces of one.")
    return " ".join(notes)
