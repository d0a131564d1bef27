"""The software stacks: the loops that run real steps, each as its facts say."""

from collections.abc import Callable
from typing import Any, NamedTuple

from qmem.architecture import Architecture
from qmem.catalogue.stacks import StackFacts
from qmem.job import Job
from qmem.profiler.meter import Meter
from qmem.profiler.stacks.hf import run_hf
from qmem.profiler.stacks.plain import run_plain
from qmem.profiler.stacks.trl import run_trl


class Run(NamedTuple):
    """All that a loop needs.

    Attributes:
        steps: how many steps to run, the traced one included.
        begins: is called before each step, with its number.
        declare: says of a number on the device that it is a healthy run's and that its value changes no shape.
    """

    job: Job
    facts: StackFacts
    architecture: Architecture
    model: Any
    meter: Meter
    steps: int
    begins: Callable[[int], None]
    declare: Callable[[Any, str], None]


STACKS: tuple[tuple[str, Callable[[Any], None]], ...] = (("hf", run_hf), ("trl", run_trl), ("plain", run_plain))


def run_stack(run: Run) -> None:
    """Run the steps with the loop of the job's stack, which was found able to (``qmem.profiler.refusals``)."""
    dict(STACKS)[run.job.stack.partition("@")[0]](run)
