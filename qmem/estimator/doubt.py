"""How far the estimate may be off: what jobs of the same regime were off by, or that none was checked."""

from collections.abc import Iterator

from qmem.architecture import Architecture
from qmem.catalogue.checked import Checked, Replay, checked
from qmem.job import Job
from qmem.ledger import Doubt, Interval

LEAST_JOBS = 3
"""Fewer checked jobs say nothing about the next one."""


def doubt(job: Job, architecture: Architecture, allocated_bytes: int, replay: Replay) -> Doubt:
    """The interval that the measured peak of such jobs lay in, or why there is none.

    ``estimate = measured * (1 + error)``, so the measured peak of this job lies between ``estimate / (1 + high)`` and
    ``estimate / (1 + low)`` if its error is within those that were seen.
    """
    known = checked()
    experts = any(parameter.role == "expert" for parameter in architecture.parameters)
    stack = job.stack.partition("@")[0]
    regime = known.regime(job.stack, job.method, experts=experts)
    what = f"{job.method} under {stack}{' with experts' if experts else ''}"
    if regime is None or regime.jobs < LEAST_JOBS:
        return Doubt(because=f"not known: {what} was checked in {regime.jobs if regime else 0} jobs")
    outside = tuple(_outside(job, architecture, known))
    if outside:
        return Doubt(because=f"not known: outside what was checked ({', '.join(outside)})")
    low, high = regime.errors(replay)
    interval = Interval(round(allocated_bytes / (1 + high)), round(allocated_bytes / (1 + low)))
    seen = f"{low:+.3%} to {high:+.3%}"
    return Doubt(because=f"{regime.jobs} checked jobs like it ({what}) were off by {seen}", allocated_bytes=interval)


def _outside(job: Job, architecture: Architecture, known: Checked) -> Iterator[str]:
    if architecture.family not in known.families:
        yield f"no model of the family {architecture.family}"
    for field, (least, most) in known.ranges.items():
        if field == "rank" and not job.has_adapter:
            continue
        value = getattr(job, field)
        if not least <= value <= most:
            yield f"{field} {value}, checked from {least} to {most}"
