"""What a difference from the baseline means: growth beyond the tolerance fails, and its cause is named.

It owns tolerances and words.  Figures come from ledgers (``figures.py``); nothing is measured here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import msgspec
from msgspec import structs

from qmem.errors import QmemError, UnavailableError
from qmem.gate.baseline import Baseline
from qmem.gate.figures import PAGED, SEPARATOR, figures
from qmem.gate.scenario import Scenario
from qmem.ledger import Interval, Ledger
from qmem.units import MIB, format_bytes, format_move

Outcome = Literal[
    "unchanged", "within tolerance", "stale", "grown", "over budget", "out of memory",
    "no baseline", "not comparable", "not measured", "wrong",
]  # fmt: skip

LARGEST = 3
"""Causes that are named."""

ROUNDING = "rounding"
CACHE = "cache"
"""Kinds that follow from others: rounding is named where it grew most, cache never."""


_STEP = re.compile(r"^step \d+")


class Tolerance(NamedTuple):
    """Growth that passes: the larger of a share and a number of bytes."""

    share: float
    n_bytes: int

    def limit(self, baseline: int) -> int:
        """Bytes that ``baseline`` may grow by."""
        return max(int(baseline * self.share), self.n_bytes)


EXACT = Tolerance(0.0, 0)
SIMULATED = Tolerance(0.001, 8 * MIB)
"""Phantom against another version of a library."""
MEASURED = Tolerance(0.01, 32 * MIB)
RESERVED = Tolerance(0.05, 64 * MIB)
"""Reserved memory follows the history of the pool; it is gated only on request."""


class Cause(msgspec.Struct, frozen=True):
    """What moved: a kind of memory and who holds it, in bytes then and now."""

    kind: str
    owner: str
    baseline: int
    now: int

    @property
    def change(self) -> int:
        """Bytes more than in the baseline."""
        return self.now - self.baseline


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that moved beyond what it may.

    Attributes:
        phase: where, or ``paged``.
        what: which counter: ``peak allocated``.
        baseline, now: bytes.
        limit: bytes that it may grow by.
        kinds: bytes that each kind of memory moved by, the largest first; at the phase's high water they add up to
            the change of peak allocated.
        causes: the largest holdings that moved there, those that explain most first.
        held_in: where these holdings are: the phase, for its high water; the same phase of the last step, where only
            counters are kept of this one; or ``end of load``, where nobody saw who held what at the high water.
    """

    phase: str
    what: str
    baseline: int
    now: int
    limit: int
    kinds: dict[str, int]
    causes: tuple[Cause, ...]
    held_in: str

    @property
    def change(self) -> int:
        """Bytes more than in the baseline."""
        return self.now - self.baseline

    @property
    def cause(self) -> str:
        """What explains most: a holding, or what the allocator adds to all of them."""
        rounding = self.kinds.get(ROUNDING, 0)
        if abs(rounding) > max((abs(cause.change) for cause in self.causes), default=0) and rounding * self.change > 0:
            asked = sum(self.kinds.values()) - rounding
            less_or_more = "less" if asked < 0 else "more"
            return f"{ROUNDING}: unsplit tails of blocks; tensors ask for {abs(asked):,} B {less_or_more}"
        return f"{self.causes[0].kind}: {self.causes[0].owner}" if self.causes else ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of one scenario.

    Attributes:
        outcome: the worst that was found.
        why: one sentence.
        findings: figures that grew, or in a stale scenario shrank, worst first.
        changed: what the job or the libraries are now that they were not: ``transformers 5.22.0 -> 5.23.0``.
        peak: bytes allocated at the peak now; absent where nothing was measured.
        was: bytes then; absent without a baseline.
        simulated: whether the numbers come from a phantom GPU.
    """

    scenario: str
    outcome: Outcome
    why: str
    findings: tuple[Finding, ...] = ()
    changed: tuple[str, ...] = ()
    peak: int | None = None
    was: int | None = None
    simulated: bool = False


def judge(scenario: Scenario, ledger: Ledger, baseline: Baseline | None) -> Verdict:
    """Hold what was measured against the budget and the baseline."""
    if ledger.ended != "complete":
        return _cut_off(scenario, ledger, baseline)
    over = _over_budget(scenario, ledger)
    verdict = _compared(scenario, ledger, baseline) if baseline else _without_baseline(scenario)
    now = structs.replace(verdict, peak=ledger.peak.allocated_bytes, simulated=ledger.instrument == "phantom profile")
    if over and verdict.outcome != "grown":
        return structs.replace(now, outcome="over budget", why=over)
    return structs.replace(now, why=f"{now.why}; {over}") if over else now


def _cut_off(scenario: Scenario, ledger: Ledger, baseline: Baseline | None) -> Verdict:
    """A run that did not end: out of memory is a finding, whatever was measured until then."""
    outcome: Outcome = "out of memory" if ledger.ended == "out of memory" else "not measured"
    why = "; ".join((f"the run ended with {ledger.ended}", *ledger.warnings))
    changed = baseline.changes(ledger) if baseline else ()
    return Verdict(scenario=scenario.name, outcome=outcome, why=why, changed=changed, simulated=_is_simulated(ledger))


def _is_simulated(ledger: Ledger) -> bool:
    return ledger.instrument == "phantom profile"


def not_measured(scenario: Scenario, error: QmemError) -> Verdict:
    """The verdict where nothing can be compared: this machine cannot measure it, or it or its baseline is wrong."""
    outcome: Outcome = "not measured" if isinstance(error, UnavailableError) else "wrong"
    return Verdict(scenario=scenario.name, outcome=outcome, why=str(error))


def _over_budget(scenario: Scenario, ledger: Ledger) -> str:
    if scenario.budget is None:
        return ""
    peak = getattr(ledger.peak, f"{scenario.waterline}_bytes")
    if peak is None:
        return ""
    n_bytes = peak.high if isinstance(peak, Interval) else peak
    if n_bytes <= scenario.budget:
        return ""
    peak_words = f"peak {scenario.waterline} {format_bytes(n_bytes)}"
    budget, above = format_bytes(scenario.budget), format_bytes(n_bytes - scenario.budget)
    return f"{peak_words} is {above} over the budget of {budget}"


def _without_baseline(scenario: Scenario) -> Verdict:
    return Verdict(
        scenario=scenario.name,
        outcome="no baseline",
        why=f"there is no baseline: {update_command(scenario.name)}",
    )


def update_command(name: str) -> str:
    """The line that makes a scenario's baseline."""
    return f'qmem baseline update --only {name} --reason "…"'


def _compared(scenario: Scenario, ledger: Ledger, baseline: Baseline) -> Verdict:
    unlike = baseline.unlike(scenario, ledger)
    verdict = Verdict(scenario=scenario.name, outcome="not comparable", why="", was=baseline.peak)
    if unlike:
        return structs.replace(verdict, why=f"another {unlike[0]}: {update_command(scenario.name)}")
    verdict = structs.replace(verdict, changed=baseline.changes(ledger))
    now = figures(ledger)
    moved = sorted(_moved(scenario, ledger, baseline, now), key=_worst_first)
    grown = tuple(finding for finding in moved if finding.change > 0)
    if grown:
        return structs.replace(verdict, outcome="grown", why=_sentence(grown[0]), findings=grown)
    if moved:
        why = f"{_sentence(moved[0])}: the baseline is stale, {update_command(scenario.name)}"
        return structs.replace(verdict, outcome="stale", why=why, findings=tuple(moved))
    same = all(baseline.figures.get(name) == n_bytes for name, n_bytes in now.items() if _is_counter(name))
    outcome: Outcome = "unchanged" if same else "within tolerance"
    return structs.replace(verdict, outcome=outcome, why=outcome)


def _worst_first(finding: Finding) -> tuple[int, bool, str]:
    """Of equal ones the phase whose holdings are known."""
    return -abs(finding.change), finding.held_in != finding.phase, finding.phase


def _sentence(finding: Finding) -> str:
    direction = "grew" if finding.change > 0 else "fell"
    amounts = format_move(finding.baseline, finding.now)
    named = f" ({finding.cause})" if finding.cause else ""
    phase = "" if finding.phase == PAGED else f" in {finding.phase}"
    return f"{finding.what}{phase} {direction} by {format_bytes(abs(finding.change))}, {amounts}{named}"


def _moved(scenario: Scenario, ledger: Ledger, baseline: Baseline, now: Mapping[str, int]) -> Iterator[Finding]:
    """The gated figures that moved too far.

    A phase that the baseline does not have, such as a fourth step, is new and not grown.
    """
    before, tolerance = baseline.figures, _tolerance(ledger, baseline)
    known = {_phase(name) for name in before}
    for name in now.keys() | before.keys():
        allowed = EXACT if name == PAGED else _allowed(name, scenario, tolerance)
        if allowed is None or _phase(name) not in known:
            continue
        was, is_now = before.get(name, 0), now.get(name, 0)
        limit = allowed.limit(was)
        if abs(is_now - was) > limit:
            phase, _, what = name.partition(SEPARATOR)
            causes = list(_causes(_held(phase, before), _held(phase, now)))
            yield Finding(
                phase=phase,
                what=what or "paged bytes",
                baseline=was,
                now=is_now,
                limit=limit,
                kinds=_by_kind(causes),
                causes=_largest(causes, grown=is_now > was),
                held_in=_held_in(phase, now),
            )


def _tolerance(ledger: Ledger, baseline: Baseline) -> Tolerance:
    if ledger.instrument == "estimate":
        return EXACT
    if ledger.instrument == "phantom profile":
        return EXACT if baseline.versions == ledger.versions else SIMULATED
    return MEASURED


def _allowed(name: str, scenario: Scenario, tolerance: Tolerance) -> Tolerance | None:
    """How far a figure may move; ``None`` for one that is not gated."""
    if name.endswith(f"{SEPARATOR}peak allocated"):
        return tolerance
    if name.endswith(f"{SEPARATOR}peak reserved") and scenario.gates_reserved:
        return tolerance if tolerance == EXACT else RESERVED
    return None


def _is_counter(name: str) -> bool:
    return name == PAGED or name.count(SEPARATOR) == 1


def _phase(name: str) -> str:
    return name.partition(SEPARATOR)[0]


def _phases(table: Mapping[str, int]) -> set[str]:
    return {_phase(name) for name in table}


def _held(phase: str, table: Mapping[str, int]) -> dict[str, int]:
    """The holdings of a phase by kind and owner; of a step whose holdings are not kept, those of the last step."""
    prefix = _with_holdings(phase, table) + SEPARATOR
    return {
        name.removeprefix(prefix): n_bytes
        for name, n_bytes in table.items()
        if name.startswith(prefix) and not _is_counter(name)
    }


def _causes(before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[Cause]:
    """The holdings that moved."""
    for name in sorted(now.keys() | before.keys()):
        kind, _, owner = name.partition(SEPARATOR)
        cause = Cause(kind, owner, before.get(name, 0), now.get(name, 0))
        if kind != CACHE and cause.change:
            yield cause


def _by_kind(causes: list[Cause]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for cause in causes:
        kinds[cause.kind] = kinds.get(cause.kind, 0) + cause.change
    return dict(sorted(kinds.items(), key=lambda pair: -abs(pair[1])))


def _largest(causes: list[Cause], *, grown: bool) -> tuple[Cause, ...]:
    same_way = (cause for cause in causes if (cause.change > 0) is grown and cause.kind != ROUNDING)
    return tuple(sorted(same_way, key=lambda cause: -abs(cause.change))[:LARGEST])


def _with_holdings(phase: str, table: Mapping[str, int]) -> str:
    """The phase itself, or the same one of the step whose holdings are kept."""
    kept = {_phase(name) for name in table if not _is_counter(name)}
    alike = (other for other in sorted(kept) if _in_any_step(other) == _in_any_step(phase))
    return phase if phase in kept else next(alike, phase)


def _held_in(phase: str, table: Mapping[str, int]) -> str:
    place = _with_holdings(phase, table)
    at_high_water = sum(_held(phase, table).values()) == table.get(f"{place}{SEPARATOR}peak allocated")
    return place if at_high_water or place == PAGED else f"end of {place}"


def _in_any_step(phase: str) -> str:
    """``step .2 forward`` for ``step 3.2 forward``."""
    return _STEP.sub("step ", phase)
