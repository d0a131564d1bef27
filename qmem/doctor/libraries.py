"""Which libraries are installed, which were checked, and which extras miss something.  Loads none of them."""

import re
from collections.abc import Iterator
from importlib import metadata

import msgspec

from qmem.catalogue.stacks import resolve_stack, stack_names
from qmem.job import Job

DISTRIBUTION = "qmem-planner"
FOR_DEVELOPERS = ("test", "dev")
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?P<bounds>[^;]*)(?:;.*extra\s*==\s*[\"'](?P<extra>[\w-]+)[\"'])?")
_AT_LEAST = re.compile(r">=\s*(\d+(?:\.\d+)*)")


class Library(msgspec.Struct, frozen=True, kw_only=True):
    """A library of the software stacks: the installed version, if any, and those that stacks were checked with."""

    name: str
    installed: str | None
    checked: tuple[str, ...]


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """An extra of qmem: what it misses (nothing, or names with what is needed) and the line that installs it."""

    name: str
    missing: tuple[str, ...]
    install: str


def libraries() -> tuple[Library, ...]:
    """The libraries that decide about memory, in the order of the stacks."""
    checked: dict[str, list[str]] = {}
    for stack in stack_names():
        for name, version in resolve_stack(Job(model="any", stack=stack)).versions.items():
            known = checked.setdefault(name, [])
            known += [] if version in known else [version]
    return tuple(
        Library(name=name, installed=installed(name), checked=tuple(versions)) for name, versions in checked.items()
    )


def installed(name: str) -> str | None:
    """The version of a distribution, or nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def extras() -> tuple[Extra, ...]:
    """The extras for users, with what each misses here."""
    needed: dict[str, list[str]] = {}
    for extra, name, bounds in _requirements():
        lacks = needed.setdefault(extra, [])
        lacks += [] if _satisfied(installed(name), bounds) else [f"{name}{bounds}"]
    return tuple(
        Extra(name=name, missing=tuple(lacks), install=f'pip install "{DISTRIBUTION}[{name}]"')
        for name, lacks in needed.items()
    )


def _requirements() -> Iterator[tuple[str, str, str]]:
    for line in metadata.requires(DISTRIBUTION) or ():
        match = _REQUIREMENT.match(line)
        if match and match["extra"] and match["extra"] not in FOR_DEVELOPERS:
            yield match["extra"], match["name"], match["bounds"].strip()


def _satisfied(version: str | None, bounds: str) -> bool:
    """Whether a version is there and not below its lower bound, which is all that qmem's own extras ask."""
    least = _AT_LEAST.search(bounds)
    return version is not None and (least is None or _release(version) >= _release(least[1]))


def _release(version: str) -> list[int]:
    """``2.14.1+cu130`` as ``[2, 14, 1]``, without trailing zeros, so that 2.0 is not below 2."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in match[0].split(".")] if match else []
    while parts and not parts[-1]:
        parts.pop()
    return parts
