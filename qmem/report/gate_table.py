"""The gate on a terminal: one line a scenario, then what moved in those that need somebody."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console

from qmem.gate import Baseline, Finding, Verdict
from qmem.report.tables import new_table, print_table
from qmem.report.text import spelling
from qmem.units import GIB, format_bytes

QUIET = ("unchanged", "within tolerance")
"""Outcomes that ask nothing of anybody."""

STYLES = {"unchanged": "green", "within tolerance": "green", "stale": "yellow", "no baseline": "yellow",
          "not comparable": "yellow", "not measured": "yellow"}  # fmt: skip
"""Other outcomes are red."""

SHOWN = 3
"""Findings of one scenario that are shown; the others are counted."""


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
    console.print(summary(verdicts))


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
    console.print(say(f"{verdict.scenario}: {verdict.why}"), markup=False)
    for change in verdict.changed:
        console.print(say(f"  changed: {change}"), markup=False)
    for finding in verdict.findings[:SHOWN]:
        for line in described(finding):
            console.print(say(f"  {line}"), markup=False)
    if len(verdict.findings) > SHOWN:
        console.print(f"  and {len(verdict.findings) - SHOWN} more phases")


def described(finding: Finding) -> Iterable[str]:
    """A finding in a few lines: the counter, the kinds, the largest holdings that moved."""
    amounts_ = f"{format_bytes(finding.baseline)} -> {format_bytes(finding.now)}"
    yield f"{finding.phase}: {finding.what} {amounts_} ({finding.change:+,} B, limit {finding.limit:+,} B)"
    kinds = [f"{kind} {change:+,} B" for kind, change in finding.kinds.items()]
    if kinds:
        yield f"  by kind: {', '.join(kinds)}"
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
        table.add_row(name, *words, f"{baseline.peak / GIB:.3f}", paged)
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
            table.add_row(figure, *amounts_, f"{(now or 0) - (was or 0):+,}")
        print_table(console, table)
