"""The examination: ask everything once, then say what can be done here and what is in the way."""

import platform
from typing import Any

import msgspec

from qmem.doctor.ask import Driver, Nvml, Torch, ask
from qmem.doctor.environment import allocator_problems, allocator_variables, is_wsl
from qmem.doctor.libraries import DISTRIBUTION, Extra, Library, extras, installed, libraries
from qmem.phantom import availability

NVML_DISTRIBUTION = "nvidia-ml-py"


class Ability(msgspec.Struct, frozen=True, kw_only=True):
    """Something that qmem does: whether it can here, and why not."""

    name: str
    can: bool
    why_not: str | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found out.

    ``problems`` are sentences, each with what to do; ``abilities`` are what qmem can do on this machine.
    """

    qmem: str | None
    python: str
    system: str
    wsl: bool
    driver: Driver
    nvml: Nvml
    torch: Torch
    libraries: tuple[Library, ...]
    extras: tuple[Extra, ...]
    allocator: dict[str, str]
    abilities: tuple[Ability, ...]
    problems: tuple[str, ...]


def examine() -> Health:
    """Look at this machine; takes as long as an import of torch where that is installed."""
    known, lacking = libraries(), extras()
    answers = _answers()
    driver, nvml, torch = (
        msgspec.convert(answers["driver"], Driver),
        msgspec.convert(answers["nvml"], Nvml),
        msgspec.convert(answers["torch"], Torch),
    )
    variables = allocator_variables()
    return Health(
        qmem=installed(DISTRIBUTION),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        wsl=is_wsl(),
        driver=driver,
        nvml=nvml,
        torch=torch,
        libraries=known,
        extras=lacking,
        allocator=variables,
        abilities=_abilities(lacking, torch),
        problems=(*allocator_problems(variables), *device_problems(driver, nvml, torch)),
    )


def _answers() -> dict[str, dict[str, Any]]:
    """The driver is always asked, a library only where it is installed."""
    needed = {"driver": None, "nvml": NVML_DISTRIBUTION, "torch": "torch"}
    asked = [question for question, library in needed.items() if library is None or installed(library)]
    missing = {question: {"why_not": f"{library} is not installed"} for question, library in needed.items()}
    return {**missing, **ask(asked)}


def device_problems(driver: Driver, nvml: Nvml, torch: Torch) -> tuple[str, ...]:
    """What the driver, NVML and torch say that does not go together, or that changes what their numbers mean."""
    problems = []
    if driver.gpus and torch.version and not torch.gpus and torch.cuda:
        problems.append(
            f"the driver shows {len(driver.gpus)} GPU, torch can use none: torch is built for CUDA {torch.cuda}, the "
            f"driver runs up to {driver.cuda}; update the driver, or look at CUDA_VISIBLE_DEVICES"
        )
    if driver.gpus and nvml.why_not:
        problems.append(f"NVML does not answer ({nvml.why_not}): what other processes hold cannot be measured")
    if any(gpu.mig for gpu in nvml.gpus):
        problems.append("MIG is on: NVML's figures are those of the whole card; cudaMemGetInfo's are right")
    if any(gpu.concurrent_managed_access is False for gpu in driver.gpus):
        problems.append(
            "concurrent managed access is off: paged optimizer state cannot be larger than what is free on the GPU"
        )
    return tuple(problems)


def _abilities(lacking: tuple[Extra, ...], torch: Torch) -> tuple[Ability, ...]:
    profile = next((extra for extra in lacking if extra.name == "profile"), None)
    lacks = f"{', '.join(profile.missing)} missing: {profile.install}" if profile and profile.missing else None
    build = None if torch.cuda else torch.why_not or f"torch {torch.version} is not a CUDA build: install one"
    no_gpu = None if torch.gpus else "torch can use no GPU"
    why_not = {
        "qmem estimate": None,
        "qmem profile": lacks or build or no_gpu,
        "qmem profile --phantom": lacks or build or _phantom_lacks(),
    }
    return tuple(Ability(name=name, can=reason is None, why_not=reason) for name, reason in why_not.items())


def _phantom_lacks() -> str | None:
    """Why the phantom GPU cannot run, in its own words."""
    available = availability()
    return None if available.can_run else available.why
