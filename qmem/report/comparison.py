"""The rule of thumb beside a ledger: which line stands beside which row, by how much they differ, and why.

It owns that pairing and its words; it computes neither side.
"""

import msgspec

from qmem.estimator.rule_of_thumb import Line, RuleOfThumb
from qmem.ledger import Interval, Kind
from qmem.report.breakdown import Breakdown, Row
from qmem.report.rounding import share_interval_units
from qmem.report.text import excess_gb, hundredths, interval_gb
from qmem.units import GB

RULE_SCALE = 100
"""The rule of thumb is printed in hundredths of a GB."""


class Beside(msgspec.Struct, frozen=True):
    """What stands beside a row: the rule's amount and how far the row is from it, both in GB, as text."""

    amount: str
    excess: str


def beside(kind: Kind, breakdown: Breakdown, rule: RuleOfThumb | None) -> Beside:
    """The rule's line for a heading or row; what its total leaves out stands in parentheses."""
    line = rule.line(kind) if rule else None
    if rule is None or line is None:
        return Beside("", "")
    amount = amounts(rule)[rule.lines.index(line)]
    return Beside(amount, excess_gb(held(line, breakdown), line.n_bytes))


def beside_total(breakdown: Breakdown, rule: RuleOfThumb | None) -> Beside:
    """The rule's total beside the highest total that is known."""
    if rule is None:
        return Beside("", "")
    return Beside(interval_gb(rule.total), excess_gb(breakdown.totals[-1].n_bytes, rule.total))


def amounts(rule: RuleOfThumb) -> list[str]:
    """The lines in GB: those that count add up to the printed total, the others stand in parentheses."""
    counted = [line for line in rule.lines if line.counted]
    units = iter(share_interval_units([line.n_bytes for line in counted], GB, RULE_SCALE))
    return [hundredths(next(units)) if line.counted else f"({interval_gb(line.n_bytes)})" for line in rule.lines]


def held(line: Line, breakdown: Breakdown) -> Interval:
    """The bytes that a line of the rule speaks of: a heading's, or one row's on the GPU; overhead is in its buffers."""
    if line.kind is Kind.BUFFERS:
        return breakdown.bytes_under(Kind.BUFFERS, Kind.OVERHEAD)
    if line.kind.heading is line.kind:
        return breakdown.bytes_under(line.kind)
    amount = sum(row.n_bytes.low for row in breakdown.rows if row.kind is line.kind)
    return Interval(amount, amount)


def why_they_differ(breakdown: Breakdown, rule: RuleOfThumb) -> str:
    """By how much the totals differ, and why the heading that differs most does, in one sentence."""
    top = breakdown.totals[-1]
    excess = beside_total(breakdown, rule).excess
    distance = "within it" if excess == "within" else f"{excess} GB"
    opening = f"Rule of thumb {interval_gb(rule.total)} GB, total {top.waterline} {interval_gb(top.n_bytes)} GB"
    furthest = max((line for line in rule.lines if line.counted), key=lambda line: _gap(line, breakdown))
    return f"{opening}, {distance}: {_reason(furthest, breakdown)}."


def _reason(line: Line, breakdown: Breakdown) -> str:
    """``mostly weights, +6.10 GB (it counts ...; fp32 weights alone hold 6.22 GB)``."""
    if not _gap(line, breakdown):
        return "no heading differs"
    rows = [row for row in breakdown.rows if row.kind.heading is line.kind and row.n_bytes.low]
    if line.kind is Kind.WEIGHTS:
        rows = [row for row in rows if row.kind in (Kind.WEIGHT_16BIT, Kind.WEIGHT_32BIT)] or rows
    largest = max(rows, key=_amount, default=None)
    holds = f"; {largest.label} alone hold {interval_gb(largest.n_bytes)} GB" if largest else ""
    excess = excess_gb(held(line, breakdown), line.n_bytes)
    return f"mostly {line.kind.label}, {excess} GB (it counts {line.because}{holds})"


def _gap(line: Line, breakdown: Breakdown) -> int:
    """Bytes between what the line says and what is held; 0 where the intervals meet."""
    n_bytes = held(line, breakdown)
    return max(n_bytes.low - line.n_bytes.high, line.n_bytes.low - n_bytes.high, 0)


def _amount(row: Row) -> int:
    return row.n_bytes.low
