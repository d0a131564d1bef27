"""The rule of thumb beside a ledger: which line stands beside which row, by how much they differ, and why.

It owns that pairing and its words; it computes neither side.
"""

from typing import NamedTuple

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
    return Beside(amounts(rule)[rule.lines.index(line)], _excess(line, breakdown))


def beside_total(breakdown: Breakdown, rule: RuleOfThumb | None) -> Beside:
    """The rule's total beside the highest total that is known; one below *device* can only prove the rule too low."""
    if rule is None:
        return Beside("", "")
    top = breakdown.totals[-1]
    excess = excess_gb(top.n_bytes, rule.total)
    known = top.waterline == "device" or excess.startswith("+")
    return Beside(interval_gb(rule.total), excess if known else "")


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
    """By how much the totals differ, and the heading that does most of it, in one sentence."""
    top = breakdown.totals[-1]
    excess = beside_total(breakdown, rule).excess
    distance = {"within": ", within it", "": ""}.get(excess, f", {excess} GB")
    opening = f"Rule of thumb {interval_gb(rule.total)} GB, total {top.waterline} {interval_gb(top.n_bytes)} GB"
    causes = [_left_out(breakdown), *(_cause(line, breakdown) for line in rule.lines if line.counted)]
    decides = {"+": _signed, "-": _negated}.get(excess[:1], _size)
    return f"{opening}{distance}: {max(causes, key=decides).reason}."


class _Cause(NamedTuple):
    """What makes the rule differ: bytes that it counts too few (positive) or too many, and the words for it."""

    n_bytes: int
    reason: str


def _left_out(breakdown: Breakdown) -> _Cause:
    """What is trained and its optimizer: the rule shows them and leaves them out of its total."""
    n_bytes = breakdown.bytes_under(Kind.LORA_AND_ADAMW)
    return _Cause(
        n_bytes.low, f"mostly {Kind.LORA_AND_ADAMW.label}, {interval_gb(n_bytes)} GB that its total leaves out"
    )


def _cause(line: Line, breakdown: Breakdown) -> _Cause:
    """``mostly weights, +6.10 GB (it counts ...; fp32 weights alone hold 6.22 GB)``."""
    gap = _gap(line, breakdown)
    if not gap:
        return _Cause(0, "no heading differs")
    rows = [row for row in breakdown.rows if row.kind.heading is line.kind and row.n_bytes.low]
    if line.kind is Kind.WEIGHTS:
        rows = [row for row in rows if row.kind in (Kind.WEIGHT_16BIT, Kind.WEIGHT_32BIT)] or rows
    largest = max(rows, key=_amount, default=None)
    holds = f"; {largest.label} alone hold {interval_gb(largest.n_bytes)} GB" if largest else ""
    return _Cause(gap, f"mostly {line.kind.label}, {_excess(line, breakdown)} GB (it counts {line.because}{holds})")


def _signed(cause: _Cause) -> int:
    return cause.n_bytes


def _negated(cause: _Cause) -> int:
    return -cause.n_bytes


def _size(cause: _Cause) -> int:
    return abs(cause.n_bytes)


def _excess(line: Line, breakdown: Breakdown) -> str:
    """The difference as text; nothing where what the line speaks of is not fully known."""
    return excess_gb(held(line, breakdown), line.n_bytes) if _is_known(line, breakdown) else ""


def _is_known(line: Line, breakdown: Breakdown) -> bool:
    """Overhead, which the rule counts with its buffers, is known up to the device only."""
    return line.kind is not Kind.BUFFERS or breakdown.total("device") is not None


def _gap(line: Line, breakdown: Breakdown) -> int:
    """Bytes held above (positive) or below what the line says; 0 where both meet or what is held is not known."""
    n_bytes = held(line, breakdown)
    if not _is_known(line, breakdown):
        return 0
    return max(n_bytes.low - line.n_bytes.high, 0) - max(line.n_bytes.low - n_bytes.high, 0)


def _amount(row: Row) -> int:
    return row.n_bytes.low
