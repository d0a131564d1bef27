"""Scenarios: ``[tool.qmem.scenarios.NAME]`` in ``pyproject.toml``, or ``[scenarios.NAME]`` in ``qmem.toml``.

A scenario is a job with its instrument and its device, or a program that trains.  It owns reading them and naming what
is wrong with them; it runs nothing.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from qmem.catalogue import find_gpu
from qmem.errors import UsageError
from qmem.job import Job, make_job
from qmem.job.file import read_toml
from qmem.units import parse_bytes

FILES = ("qmem.toml", "pyproject.toml")
"""Where scenarios stand; the first file that has any counts, from the working folder upwards."""

DEFAULT_STEPS = 3

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Instrument = Literal["estimate", "phantom", "gpu"]
GatedWaterline = Literal["allocated", "reserved", "device"]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, on what, and how much it may take.

    Attributes:
        name: as its table is called; also the name of its baseline's file.
        instrument: ``estimate``, ``phantom`` (simulated), or ``gpu``.
        device: the id of the card that is simulated or whose kernels are estimated; ``None`` for a real GPU.
        memory: bytes of the simulated card, where they are to differ from the catalogue's.
        budget: bytes that the peak may have at ``waterline``; ``None`` where nobody wrote one.
        gates_reserved: whether growth of reserved memory fails too.
        steps: clean steps of a run.
        job: what is trained; ``None`` where a program trains.
        command: a program with its arguments, or ``None``.
        call: a Python callable as ``module:function``, or ``None``.
    """

    name: str
    instrument: Instrument
    device: str | None = None
    memory: int | None = None
    budget: int | None = None
    waterline: GatedWaterline = "allocated"
    gates_reserved: bool = False
    steps: int = DEFAULT_STEPS
    job: Job | None = None
    command: tuple[str, ...] | None = None
    call: str | None = None


class Scenarios(NamedTuple):
    """The scenarios of a project and the folder that holds them; baselines and models are named from there."""

    folder: Path
    by_name: dict[str, Scenario]

    def chosen(self, names: tuple[str, ...]) -> tuple[Scenario, ...]:
        """Those that are named, or all.

        Raises:
            UsageError: there is none of that name.
        """
        unknown = [name for name in names if name not in self.by_name]
        if unknown:
            raise UsageError(
                f"there is no scenario {unknown[0]!r}", hint=f"there are {', '.join(self.by_name) or 'none'}"
            )
        return tuple(self.by_name[name] for name in names or self.by_name)


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a table that are not the job's."""

    instrument: Instrument = "estimate"
    device: str | None = None
    memory: str | int | None = None
    budget: str | int | None = None
    waterline: GatedWaterline | None = None
    gates_reserved: bool = False
    steps: int | None = None
    command: tuple[str, ...] | str | None = None
    call: str | None = None


def read_scenarios(start: Path) -> Scenarios:
    """The scenarios of the project that ``start`` lies in.

    Raises:
        UsageError: there are none, or a table is wrong; the message names file and table.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        for name in FILES:
            path = folder / name
            tables = _tables(path) if path.is_file() else {}
            if tables:
                return Scenarios(folder, {key: _scenario(path, key, table) for key, table in tables.items()})
    raise UsageError(
        "no scenarios here", hint='write for example [tool.qmem.scenarios.train] with model = "…" in pyproject.toml'
    )


def _tables(path: Path) -> dict[str, Any]:
    content = read_toml(str(path))
    place = content if path.name == "qmem.toml" else content.get("tool", {}).get("qmem", {})
    tables = place.get("scenarios", {}) if isinstance(place, dict) else {}
    if not isinstance(tables, dict):
        raise UsageError(f"{path}: scenarios is {tables!r}, but must be a table of tables")
    return tables


def _scenario(path: Path, name: str, table: Any) -> Scenario:
    try:
        return make_scenario(name, table, path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: scenario {name}: {error.message}", hint=error.hint) from error


def make_scenario(name: str, table: Any, folder: Path) -> Scenario:
    """A scenario from the values of its table; a model's path is taken from ``folder``.

    Raises:
        UsageError: a value is wrong or contradicts another.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"the name {name!r} cannot name a file", hint="use letters, digits, '-', '_' and '.'")
    if not isinstance(table, dict):
        raise UsageError(f"it is {table!r}, but must be a table")
    own = {key: value for key, value in table.items() if key in _Table.__struct_fields__}
    fields = {key: value for key, value in table.items() if key not in own}
    try:
        wanted = msgspec.convert(own, _Table)
    except msgspec.ValidationError as error:
        raise UsageError(str(error).replace(" - at `$.", " in `")) from error
    _check(wanted, fields)
    command = (wanted.command,) if isinstance(wanted.command, str) else wanted.command
    return Scenario(
        name=name,
        instrument=wanted.instrument,
        device=None if wanted.device is None else find_gpu(wanted.device).id,
        memory=_amount(wanted.memory),
        budget=_amount(wanted.budget),
        waterline=wanted.waterline or "allocated",
        gates_reserved=wanted.gates_reserved,
        steps=DEFAULT_STEPS if wanted.steps is None else wanted.steps,
        job=_job(fields, folder) if fields else None,
        command=_words(command) if command else None,
        call=wanted.call,
    )


def _check(wanted: _Table, fields: Mapping[str, Any]) -> None:
    programs = [name for name in ("command", "call") if getattr(wanted, name)]
    if len(programs) + bool(fields) != 1:
        raise UsageError(
            "it must be one of a job, a command and a call", hint="write model = …, command = … or call = …"
        )
    if programs and wanted.instrument == "estimate":
        raise UsageError(f"a {programs[0]} is run, not estimated", hint='write instrument = "phantom" or "gpu"')
    if wanted.instrument == "phantom" and wanted.device is None:
        raise UsageError("the phantom needs a device", hint='write for example device = "a100-80"')
    if wanted.instrument == "gpu" and wanted.device is not None:
        raise UsageError("a real GPU is the one that is there", hint="leave device out")
    if wanted.memory is not None and wanted.instrument != "phantom":
        raise UsageError("memory changes a simulated card", hint='write instrument = "phantom", or leave memory out')
    if wanted.waterline is not None and wanted.budget is None:
        raise UsageError("waterline says what budget counts, but there is no budget")
    if wanted.waterline == "device" and wanted.instrument == "estimate":
        raise UsageError("an estimate has no device peak", hint='write waterline = "reserved", or another instrument')
    if wanted.steps is not None and wanted.steps < 2:  # noqa: PLR2004 - the first step has no optimizer state yet
        raise UsageError(f"steps is {wanted.steps}, but must be at least 2")
    if wanted.steps is not None and wanted.instrument == "estimate":
        raise UsageError("an estimate runs no steps", hint='leave steps out, or write instrument = "phantom" or "gpu"')


def _job(fields: Mapping[str, Any], folder: Path) -> Job:
    if "model" not in fields:
        raise UsageError(f"{next(iter(fields))!r} is no field of a scenario without a model", hint="write model = …")
    local = folder / str(fields["model"])
    return make_job({**fields, "model": str(local) if local.exists() else fields["model"]})


def _words(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command that is one string is split as a shell would."""
    import shlex  # noqa: PLC0415

    return tuple(shlex.split(command[0])) if len(command) == 1 else command


def _amount(written: str | int | None) -> int | None:
    if written is None or isinstance(written, int):
        return written
    return parse_bytes(written)
