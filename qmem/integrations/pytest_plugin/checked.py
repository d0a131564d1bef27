"""The fixture ``qmem_check``: what was measured in a test, against the baseline that is stored of it.

Baselines and judgement are the gate's; this owns how a test's baseline is called, and what pytest says of a verdict.
"""

import re
import warnings
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import structs

from qmem.errors import QmemError, UsageError
from qmem.gate import Scenario, Verdict, judge
from qmem.gate.baseline import Baseline, baseline_of, path_of, read_baseline, store_baseline
from qmem.gate.judging import update_command
from qmem.gate.repository import check_committed, commit_of
from qmem.gate.scenario import Instrument
from qmem.integrations.pytest_plugin import VERDICTS
from qmem.ledger import Ledger
from qmem.report.gate_table import described
from qmem.units import parse_bytes

if TYPE_CHECKING:
    from qmem.integrations.watch import Watching

INSTRUMENTS: dict[str, Instrument] = {"estimate": "estimate", "phantom profile": "phantom", "profile": "gpu"}
"""How scenarios call the instruments of ledgers."""

GOOD = ("unchanged", "within tolerance", "stale")
"""Outcomes with which a test passes."""

LONGEST_NAME = 150
"""Signs of a test's name that its baseline's file keeps."""

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")


def baseline_name(nodeid: str, name: str = "") -> str:
    """The test's id as a file may be called: ``tests-test_train.py-test_step``.

    Where something of the id is lost on the way, a digest of it keeps two tests apart.
    """
    whole = f"{nodeid}-{name}" if name else nodeid
    plain = _UNFIT.sub("-", whole).strip("-._")
    if len(plain) <= LONGEST_NAME and "[" not in nodeid:
        return plain
    return f"{plain[:LONGEST_NAME]}-{sha256(whole.encode()).hexdigest()[:8]}"


class Checked:
    """Compares ledgers with the baselines of one test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item, self._config = item, item.config
        self._seen: set[str] = set()
        self._unstored: list[Baseline] = []

    def __call__(self, ledger: "Ledger | Watching", *, name: str = "", budget: str | int | None = None) -> Verdict:
        """Fail the test where the peak grew beyond the tolerance, is over the budget, or has nothing to compare with.

        Args:
            ledger: from ``qmem.estimate`` or a profile, or what ``qmem.watch`` gave, once its block is left.
            name: tells several ledgers of one test apart.
            budget: the most that may be allocated: bytes, or ``"11.5 GiB"``.
        """
        try:
            measured = _ledger_of(ledger)
            scenario = self._scenario(measured, name, budget)
            verdict = self._judged(scenario, measured, self._baseline(scenario, measured))
        except QmemError as error:
            pytest.fail(f"qmem_check: {error}", pytrace=False)
        self._item.stash.setdefault(VERDICTS, []).append(msgspec.json.encode(verdict).decode())
        if verdict.outcome == "stale":
            warnings.warn(f"{verdict.scenario}: {verdict.why}", stacklevel=2)
        if verdict.outcome not in GOOD:
            pytest.fail(in_words(verdict), pytrace=False)
        return verdict

    def _scenario(self, ledger: Ledger, name: str, budget: str | int | None) -> Scenario:
        if not isinstance(ledger, Ledger):
            raise UsageError(
                f"{type(ledger).__name__} is no ledger", hint="give what qmem.estimate or a profile returns"
            )
        file = baseline_name(self._item.nodeid, name)
        if file in self._seen:
            raise UsageError(
                "it was called twice in this test", hint='tell the calls apart: qmem_check(ledger, name="…")'
            )
        self._seen.add(file)
        limit = parse_bytes(budget) if isinstance(budget, str) else budget
        return Scenario(name=file, instrument=INSTRUMENTS[ledger.instrument], budget=limit)

    def store(self) -> None:
        """With ``--qmem-update``, keep what this test measured as its baselines; it has passed."""
        try:
            for baseline in self._unstored:
                store_baseline(self._config.rootpath, baseline)
        except QmemError as error:
            pytest.fail(f"qmem_check: {error}", pytrace=False)

    def _baseline(self, scenario: Scenario, ledger: Ledger) -> Baseline | None:
        """That which is stored, or with ``--qmem-update`` the one that is to be."""
        folder = self._config.rootpath
        stored = read_baseline(folder, scenario.name)
        owner = stored.passport.get("test", self._item.nodeid) if stored else self._item.nodeid
        if owner != self._item.nodeid:
            raise UsageError(
                f"{path_of(folder, scenario.name)} is the baseline of {owner}, whose name comes to the same",
                hint='give this one another: qmem_check(ledger, name="…"), or remove the file if that test is gone',
            )
        if not self._config.getoption("qmem_update"):
            return stored
        self._unstored.append(self._accepted(scenario, ledger))
        return self._unstored[-1]

    def _accepted(self, scenario: Scenario, ledger: Ledger) -> Baseline:
        folder = self._config.rootpath
        if not self._config.getoption("qmem_allow_dirty"):
            _check_committed(folder)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        passport = {"reason": "--qmem-update", "date": date, "commit": commit_of(folder), "test": self._item.nodeid}
        return baseline_of(scenario, ledger, passport)

    def _judged(self, scenario: Scenario, ledger: Ledger, baseline: Baseline | None) -> Verdict:
        verdict = judge(scenario, ledger, baseline)
        here = f'pytest "{self._item.nodeid}" --qmem-update'
        return structs.replace(verdict, why=verdict.why.replace(update_command(scenario.name), here))


def _ledger_of(given: Any) -> Ledger:
    ledger = getattr(given, "ledger", given)
    if not isinstance(ledger, Ledger):
        raise UsageError(
            f"{type(given).__name__} is or has no ledger", hint="give what qmem.estimate, a profile or qmem.watch gave"
        )
    return ledger


def _check_committed(folder: Path) -> None:
    try:
        check_committed(folder)
    except UsageError as error:
        raise UsageError(error.message, hint="commit first, or add --qmem-allow-dirty") from error


def in_words(verdict: Verdict) -> str:
    """A verdict in a few lines: the sentence, what changed in libraries and job, the counter that moved most."""
    lines = [f"qmem_check: {verdict.outcome}: {verdict.why}"]
    lines += [f"  changed: {change}" for change in verdict.changed]
    lines += [f"  {line}" for finding in verdict.findings[:1] for line in described(finding)]
    return "\n".join(lines)
