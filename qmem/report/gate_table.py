"""The gate on a terminal: one line a scenario, then what moved in those that need somebody."""

import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

from rich.console import Console
from rich.markup import escape

from qmem.gate import Baseline, Finding, Verdict
from qmem.report.tables import new_table, print_table
from qmem.report.text import spelling
from qmem.units import GIB, format_move

QUIET = ("unchanged", "within tolerance")
"""Outcomes that ask nothing of anybody."""

STYLES = {"unchanged": "green", "within tolerance": "green", "stale": "yellow", "no baseline": "yellow",
          "not comparable": "yellow", "not measured": "yellow"}  # fmt: skip
"""Other outcomes are red."""

SHOWN = 3
"""Findings of one scenario that are shown; the others are counted."""

_NO_BREAK = "\N{NO-BREAK SPACE}"
_AMOUNT = re.compile(r"(?<=\d) (?=[KMG]?i?B\b)")
"""The blank between a number and its unit."""


def render_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """The whole result of ``qmem check``."""
    table = new_table(["scenario", "outcome"], ["baseline\nGiB", "now\nGiB", "change\nMiB"])
    for verdict in verdicts:
        style = STYLES.get(verdict.outcome, "red")
        simulated = " (simulated)" if verdict.simulated else ""
        table.add_row(verdict.scenario, f"[{style}]{verdict.outcome}[/]{simulated}", *amounts(verdict))
    print_table(console, table)
    for verdict in verdicts:
        if verdict.outcome not in QUIET or verdict.changed:
            _render_details(console, verdict)
    console.print(_folded(summary(verdicts), console.width), markup=False, soft_wrap=True)


def amounts(verdict: Verdict) -> tuple[str, str, str]:
    """Peak allocated in the baseline and now, GiB, and the change in MiB; empty where it is not known."""
    was, now = verdict.was, verdict.peak
    change = "" if was is None or now is None else f"{(now - was) / (1 << 20):+,.2f}"
    return _gib(was), _gib(now), change


def _gib(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / GIB:.3f}"


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many scenarios came out how: ``6 scenarios: 5 unchanged, 1 grown.``."""
    counted = {verdict.outcome: 0 for verdict in verdicts}
    for verdict in verdicts:
        counted[verdict.outcome] += 1
    noun = "scenario" if len(verdicts) == 1 else "scenarios"
    return f"{len(verdicts)} {noun}: {', '.join(f'{count} {outcome}' for outcome, count in counted.items())}."


def _render_details(console: Console, verdict: Verdict) -> None:
    say = spelling(console.encoding)
    console.print()
    for line in _lines(verdict):
        console.print(_folded(say(line), console.width), markup=False, soft_wrap=True)


def _lines(verdict: Verdict) -> Iterable[str]:
    first, *others = sentences(verdict)
    yield f"{verdict.scenario}: {first}"
    yield from (f"  {sentence}" for sentence in others)
    for finding in verdict.findings[:SHOWN]:
        yield from (f"  {line}" for line in described(finding))
    if len(verdict.findings) > SHOWN:
        more = len(verdict.findings) - SHOWN
        yield f"  and {more} more {'phase' if more == 1 else 'phases'}"


def _folded(line: str, width: int) -> str:
    """A line over several, the further ones indented below it; an amount stays beside its unit."""
    indent = " " * (len(line) - len(line.lstrip()))
    joined = _AMOUNT.sub(_NO_BREAK, line.strip())
    lines = wrap(joined, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
    return "\n".join(lines).replace(_NO_BREAK, " ")


def sentences(verdict: Verdict) -> tuple[str, ...]:
    """What is said of a scenario: the versions and fields that changed first, then what came of it."""
    if not verdict.changed:
        return (verdict.why,)
    changed = (verdict.outcome, *(f"changed: {change}" for change in verdict.changed))
    return changed if verdict.why == verdict.outcome else (*changed, verdict.why)


def described(finding: Finding) -> Iterable[str]:
    """A finding in a few lines: the counter, the kinds, the largest holdings that moved."""
    amounts_ = format_move(finding.baseline, finding.now)
    yield f"{finding.phase}: {finding.what} {amounts_} ({finding.change:+,} B, limit {finding.limit:+,} B)"
    kinds = [f"{kind} {change:+,} B" for kind, change in finding.kinds.items()]
    if kinds:
        elsewhere = "" if finding.held_in == finding.phase else f" ({finding.held_in})"
        yield f"  by kind{elsewhere}: {', '.join(kinds)}"
    for cause in finding.causes:
        yield f"  {cause.kind}: {cause.owner} {cause.baseline:,} -> {cause.now:,} B ({cause.change:+,} B)"


def render_baselines(console: Console, baselines: Mapping[str, Baseline | None]) -> None:
    """What is stored of each scenario, and why."""
    table = new_table(["scenario", "device", "made", "commit", "reason"], ["peak GiB", "paged MiB"])
    for name, baseline in baselines.items():
        if baseline is None:
            table.add_row(name, "no baseline", "", "", "", "", "")
            continue
        said = baseline.passport
        paged = f"{baseline.figures.get('paged', 0) / (1 << 20):,.2f}"
        words = (baseline.place.get("device", ""), said.get("date", ""), said.get("commit", "")[:10], said["reason"])
        table.add_row(name, *map(escape, words), f"{baseline.peak / GIB:.3f}", paged)
    print_table(console, table)


Moved = Mapping[str, tuple[int | None, int | None]]
"""Figures then and now, by name."""


def render_differences(console: Console, differences: Mapping[str, Moved]) -> None:
    """Every figure that is another one now."""
    for name, moved in differences.items():
        console.print(f"{name}: {len(moved)} figures differ", markup=False)
        if not moved:
            continue
        table = new_table(["figure"], ["baseline B", "now B", "change B"])
        for figure, (was, now) in moved.items():
            amounts_ = ("" if n_bytes is None else f"{n_bytes:,}" for n_bytes in (was, now))
            table.add_row(escape(figure), *amounts_, f"{(now or 0) - (was or 0):+,}")
        print_table(console, table)
