"""What can be refused before a worker is started: missing libraries, and facts that no loop carries out."""

from importlib.util import find_spec
from pathlib import Path

from qmem.catalogue.config_file import read_config
from qmem.catalogue.stacks import StackFacts, named_versions
from qmem.catalogue.text_models import is_loaded_as_text
from qmem.errors import UnavailableError, UnsupportedError
from qmem.job import Job

LIBRARIES = ("torch", "bitsandbytes", "accelerate", "transformers", "peft")
"""Each after those that it imports, so that a broken one is named and not who wanted it."""

BY_STACK = {"trl": ("trl",)}
"""Libraries that only one stack needs; an extra of qmem with the stack's name brings them."""

NOT_IN_TRAINERS = ("adamw_32bit",)
"""Optimizers of a job that ``TrainingArguments`` has no name for."""


def libraries_of(job: Job) -> tuple[str, ...]:
    """What the job's stack imports."""
    return LIBRARIES + BY_STACK.get(_stack(job), ())


def install_hint(job: Job) -> str:
    """The line that installs all that the job's stack imports."""
    return f"pip install 'qmem-planner[{_stack(job) if _stack(job) in BY_STACK else 'profile'}]'"


def check_libraries(job: Job) -> None:
    """Raise ``UnavailableError`` where a library is not installed; none is imported."""
    missing = [name for name in libraries_of(job) if _is_missing(name)]
    if missing:
        raise UnavailableError(f"a profile needs {', '.join(missing)}, not installed here", hint=install_hint(job))


def _is_missing(name: str) -> bool:
    """A folder without a package in it, as an interrupted installation leaves it, is none."""
    spec = find_spec(name)
    return spec is None or spec.origin is None


def check_versions(job: Job) -> None:
    """Raise ``UnavailableError`` where a library is installed in another version than the job's stack names.

    Versions that the stack has but the job does not name are told beside the result, not refused.
    """
    for library, named in named_versions(job).items():
        installed = installed_version(library)
        if installed is not None and installed != named:
            raise UnavailableError(
                f"the job is for {library} {named}, but {library} {installed} is installed here",
                hint=f"pip install {library}=={named} in an environment of its own, or use --stack {_stack(job)}",
            )


def installed_version(library: str) -> str | None:
    """The version without its local part (``2.4.1`` for ``2.4.1+cu121``)."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version(library).partition("+")[0]
    except PackageNotFoundError:
        return None


def check_stack(job: Job, facts: StackFacts) -> None:
    """Raise ``UnsupportedError`` where no loop runs the job as its stack says."""
    name = _stack(job)
    if facts.trainer_loop and job.optimizer in NOT_IN_TRAINERS:
        raise UnsupportedError(f"the stack {name} has no optimizer {job.optimizer}", hint="use --stack plain")
    if job.loss != "standard":
        raise UnsupportedError(f"the stack {name} cannot run the loss {job.loss!r}", hint="use --loss standard")


def _stack(job: Job) -> str:
    return job.stack.partition("@")[0]


def check_weights(folder: Path) -> None:
    """Raise ``UnsupportedError`` for a multi-modal checkpoint that is loaded with its towers, whatever is planned."""
    config = read_config(str(folder / "config.json"), shown=f"{folder}/config.json")
    if "text_config" in config and not is_loaded_as_text(config):
        raise UnsupportedError(
            f"{folder} is a multi-modal {config['model_type']}, which AutoModelForCausalLM loads with its towers",
            hint="save its text model as a checkpoint of its own, and name that",
        )
