"""How far the estimate may be off: what jobs of the same regime were off by, or that none was checked."""

from collections.abc import Iterator

from qmem.architecture import Architecture
from qmem.catalogue.checked import Checked, Errors, Replay, checked
from qmem.job import Job
from qmem.ledger import Doubt, Interval

LEAST_JOBS = 3
"""Fewer checked jobs say nothing about the next one."""


def doubt(
    job: Job, architecture: Architecture, allocated_bytes: int, reserved_bytes: int | None, replay: Replay
) -> Doubt:
    """The intervals that the measured peaks lie in, if this job's errors are like those that were seen; or why not."""
    known = checked()
    experts = has_experts(architecture)
    stack = job.stack.partition("@")[0]
    regime = known.regime(job.stack, job.method, experts=experts)
    what = f"{job.method} under {stack}{' with experts' if experts else ''}"
    if regime is None or regime.jobs < LEAST_JOBS:
        return Doubt(because=f"not known: {what} was checked in {regime.jobs if regime else 0} jobs")
    outside = tuple(_outside(job, architecture, known))
    if outside:
        return Doubt(because=f"not known: outside what was checked ({', '.join(outside)})")
    errors, of_reserved = regime.errors(replay), regime.reserved_errors(replay)
    seen = f"allocated {_spelled(errors)}"
    if of_reserved is not None:
        seen += f", reserved {_spelled(of_reserved)}"
    return Doubt(
        because=f"{regime.jobs} checked jobs like it ({what}) were off by: {seen}",
        allocated_bytes=_measured(allocated_bytes, errors),
        reserved_bytes=_measured(reserved_bytes, of_reserved) if reserved_bytes and of_reserved else None,
    )


def has_experts(architecture: Architecture) -> bool:
    """Whether some of a model's parameters are experts."""
    return any(parameter.role == "expert" for parameter in architecture.parameters)


def _measured(estimated: int, errors: Errors) -> Interval:
    """``estimated = measured * (1 + error)``, read the other way round."""
    return Interval(round(estimated / (1 + errors.high)), round(estimated / (1 + errors.low)))


def _spelled(errors: Errors) -> str:
    return f"{errors.low:+.2%} to {errors.high:+.2%}"


def _outside(job: Job, architecture: Architecture, known: Checked) -> Iterator[str]:
    if architecture.family not in known.families:
        yield f"no model of the family {architecture.family}"
    for field, (least, most) in known.ranges.items():
        if field == "rank" and not job.has_adapter:
            continue
        value = getattr(job, field)
        if not least <= value <= most:
            yield f"{field} {value}, checked from {least} to {most}"
