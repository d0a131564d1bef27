"""What the environment says to torch's allocator, where it contradicts itself, and whether this is WSL."""

import os
from collections.abc import Mapping

from qmem.allocator import parse_settings, warnings
from qmem.errors import QmemError

NEW_NAME, OLD_NAME = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
NO_CACHING = "PYTORCH_NO_CUDA_MEMORY_CACHING"
ALLOCATOR_VARIABLES = (NEW_NAME, OLD_NAME, NO_CACHING)


def allocator_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that are set, by name."""
    return {name: environment[name] for name in ALLOCATOR_VARIABLES if name in environment}


def allocator_problems(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences on settings that contradict each other, that torch refuses, or that do not do what they promise."""
    problems = []
    if NEW_NAME in variables and OLD_NAME in variables and _differ(variables[NEW_NAME], variables[OLD_NAME]):
        problems.append(
            f"{NEW_NAME} and {OLD_NAME} are both set and differ; torch reads some settings from one and some from the "
            "other: keep one"
        )
    for name in (NEW_NAME, OLD_NAME):
        problems += [f"{name}: {sentence}" for sentence in _read(variables.get(name, ""))]
    if NO_CACHING in variables:
        problems.append(f"{NO_CACHING} is set: torch caches nothing, so reserved memory says nothing; unset it")
    return tuple(problems)


def _differ(one: str, other: str) -> bool:
    return sorted(_words(one)) != sorted(_words(other))


def _words(text: str) -> list[str]:
    return [word for word in "".join(text.split()).split(",") if word]


def _read(text: str) -> tuple[str, ...]:
    try:
        return warnings(parse_settings(text))
    except QmemError as error:
        return (str(error),)


def is_wsl(release_file: str = "/proc/sys/kernel/osrelease") -> bool:
    """Whether this Linux runs inside Windows."""
    try:
        with open(release_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs start-up time
            return "microsoft" in file.read().lower()
    except OSError:
        return False
