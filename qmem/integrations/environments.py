"""Pinned Python environments of other library versions, built when they are first needed.

Everything is installed as pinned and without dependencies: on the phantom nothing of NVIDIA's libraries is loaded, so
2.4 GB of wheels do instead of 7.  The qmem that runs is this one, reached through a path file, not a copy.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from qmem.errors import UnavailableError, UsageError

CHECKOUT = Path(__file__).parents[2]
"""The folder that ``qmem`` lies in, with its reports and tests."""

FOLDER = CHECKOUT / "build" / "environments"
PYTHON = "3.11"
COMPLETE = "complete.json"
"""Written last: what an environment without it holds is not known, so it is begun again."""


class Environment(msgspec.Struct, frozen=True):
    """The pins of one environment: the libraries that a step is made of, and the rest."""

    why: str
    libraries: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def pins(self) -> tuple[str, ...]:
        """All of it, as pip takes it."""
        return self.libraries + self.others


class _Environments(msgspec.Struct, frozen=True):
    about: str
    environments: dict[str, Environment]


def environments() -> dict[str, Environment]:
    """The environments by name, oldest first."""
    text = Path(__file__).with_name("environments.json").read_bytes()
    return msgspec.json.decode(text, type=_Environments).environments


def python_of(name: str, tell: Callable[[str], None], *, folder: Path = FOLDER) -> Path:
    """The interpreter of an environment, which is built if it is not there whole.

    Raises:
        UsageError: there is no such environment.
        UnavailableError: there is no Python 3.11, or pip could not install a pin.
    """
    if name not in environments():
        raise UsageError(f"there is no environment {name!r}", hint=f"use one of {', '.join(environments())}")
    environment, place = environments()[name], folder / name
    if not _is_complete(place, environment):
        tell(f"building {place}")
        _build(place, environment)
    _lead_to_this_qmem(place)
    return place / "bin" / "python"


def _is_complete(place: Path, environment: Environment) -> bool:
    mark = place / COMPLETE
    return mark.is_file() and msgspec.json.decode(mark.read_bytes()) == list(environment.pins)


def _build(place: Path, environment: Environment) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([_interpreter(), "-m", "venv", str(place)])
    _run([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", *environment.pins])
    unfinished = place / f"{COMPLETE}.new"
    unfinished.write_bytes(msgspec.json.encode(environment.pins))
    unfinished.replace(place / COMPLETE)


def _interpreter() -> str:
    if sys.version_info[:2] == tuple(map(int, PYTHON.split("."))):
        return getattr(sys, "_base_executable", sys.executable)
    found = shutil.which(f"python{PYTHON}")
    if found is None:
        raise UnavailableError(f"there is no python{PYTHON}, which the pins are for", hint="install it")
    return found


def _run(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - venv, pip
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UnavailableError(f"{' '.join(command[:5])} ended with {done.returncode}: {last}")


def _lead_to_this_qmem(place: Path) -> None:
    """A path file: what it names is searched last, so that the environment's own libraries come first."""
    site_packages = next(place.glob("lib/python*/site-packages"))
    (site_packages / "this-qmem.pth").write_text(f"{CHECKOUT}\n", encoding="utf-8")
