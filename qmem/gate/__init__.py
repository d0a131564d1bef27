"""The gate: scenarios, the baselines they are held against, and what a difference means."""

from qmem.gate.baseline import Baseline
from qmem.gate.judging import Cause, Finding, Verdict, judge
from qmem.gate.scenario import Scenario, Scenarios, read_scenarios

__all__ = ["Baseline", "Cause", "Finding", "Scenario", "Scenarios", "Verdict", "judge", "read_scenarios"]
