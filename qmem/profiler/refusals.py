"""What can be refused before a worker is started: missing libraries, and facts that no loop carries out."""

from importlib.util import find_spec
from typing import NamedTuple

from qmem.catalogue.stacks import StackFacts
from qmem.errors import UnavailableError, UnsupportedError
from qmem.job import Job

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
INSTALL = "pip install 'qmem-planner[profile]'"


class Loop(NamedTuple):
    """A stack's loop: the facts that it can carry out in one way only, and the optimizers it has not."""

    fixed: tuple[tuple[str, bool], ...]
    without: tuple[str, ...] = ()


LOOPS = {
    "hf": Loop(fixed=(("trainer_loop", True), ("token_mean", True)), without=("adamw_32bit",)),
    "plain": Loop(fixed=(("trainer_loop", False), ("token_mean", False))),
}


def check_libraries() -> None:
    """Raise ``UnavailableError`` where a library is not installed; none is imported."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise UnavailableError(f"a profile needs {', '.join(missing)}, not installed here", hint=INSTALL)


def check_stack(job: Job, facts: StackFacts) -> None:
    """Raise ``UnsupportedError`` where no loop runs the job as its stack says."""
    name = job.stack.partition("@")[0]
    if name not in LOOPS:
        raise UnsupportedError(f"the stack {name} cannot be profiled yet", hint=f"use one of {', '.join(LOOPS)}")
    for fact, value in LOOPS[name].fixed:
        if getattr(facts, fact) != value:
            asked = "no" if value else "yes"
            raise UnsupportedError(f"the stack {name} cannot run {fact}={asked}", hint=f"leave {fact} out")
    if job.optimizer in LOOPS[name].without:
        raise UnsupportedError(f"the stack {name} has no optimizer {job.optimizer}", hint="use --stack plain")
    if job.loss != "standard":
        raise UnsupportedError(f"the stack {name} cannot run the loss {job.loss!r}", hint="use --loss standard")
