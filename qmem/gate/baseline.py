"""Baselines: what a scenario measured when somebody said that it is right.

One JSON file a scenario under ``profiles/baselines/``, sorted, one figure a line, so that a change can be reviewed.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from qmem.errors import UnavailableError, UsageError
from qmem.gate.figures import figures
from qmem.gate.scenario import Scenario
from qmem.ledger import Ledger
from qmem.profiler.storing import write_whole

FOLDER = Path("profiles") / "baselines"
SCHEMA_VERSION = 1

PLACE = ("device", "total bytes", "compute capability", "alloc_conf", "cuda")
"""Entries of a passport without which two runs cannot be compared."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement that was accepted.

    Attributes:
        scenario: its name.
        instrument: of the ledger.
        job: every field of the job; of a program, the program.
        place: device, architecture and allocator settings.
        versions: of the libraries.
        passport: commit, date, reason, and whatever else the run said of itself.
        peak: bytes allocated at the peak.
        figures: every figure by name.
    """

    schema_version: int = SCHEMA_VERSION
    scenario: str
    instrument: str
    job: dict[str, Any]
    place: dict[str, str]
    versions: dict[str, str]
    passport: dict[str, str]
    peak: int
    figures: dict[str, int]

    def unlike(self, scenario: Scenario, ledger: Ledger) -> tuple[str, ...]:
        """What makes a measurement incomparable: ``device (a100-80, now h100)``."""
        pairs: dict[str, tuple[str, str]] = {"instrument": (self.instrument, ledger.instrument)}
        place = place_of(scenario, ledger)
        for name in sorted(self.place.keys() | place.keys()):
            pairs[name] = (self.place.get(name, "none"), place.get(name, "none"))
        return tuple(f"{name} ({was}, now {now})" for name, (was, now) in pairs.items() if was != now)

    def changes(self, ledger: Ledger) -> tuple[str, ...]:
        """The library versions and the fields of the job that changed, versions first."""
        versions = _changes(self.versions, ledger.versions)
        return (*versions, *_changes(self.job, job_of(ledger)))


def _changes(was: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    names = sorted(was.keys() | now.keys())
    return tuple(
        f"{name} {_word(was.get(name))} -> {_word(now.get(name))}" for name in names if was.get(name) != now.get(name)
    )


def _word(value: Any) -> str:
    return "none" if value is None else ",".join(value) if isinstance(value, list) else str(value)


def place_of(scenario: Scenario, ledger: Ledger) -> dict[str, str]:
    """Device, architecture and allocator settings of a measurement."""
    settings = f"{ledger.job.alloc_conf}{' expandable' if ledger.job.expandable_segments else ''}".strip()
    said = {"device": ledger.device or scenario.device or "none", "allocator settings": settings or "default"}
    return said | {name: ledger.passport[name] for name in PLACE if name in ledger.passport and name not in said}


def job_of(ledger: Ledger) -> dict[str, Any]:
    """Every field of the job, and the facts of its stack; of a program, the program."""
    if ledger.watched:
        return {"program": ledger.watched, "model": ledger.model}
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(ledger.job))
    return {**fields, "model": ledger.model, **{f"stack.{name}": value for name, value in ledger.stack.items()}}


def baseline_of(scenario: Scenario, ledger: Ledger, passport: dict[str, str]) -> Baseline:
    """The baseline that a measurement makes.

    Raises:
        UsageError: the run failed, or is tainted: it says nothing about the next one.
    """
    if ledger.ended != "complete":
        raise UsageError(f"{scenario.name} ended with {ledger.ended}: it cannot be a baseline")
    if ledger.state == "tainted":
        raise UsageError(
            f"{scenario.name} is tainted: a value that was never computed decided a shape, so it cannot be a baseline",
            hint="qmem report shows which",
        )
    return Baseline(
        scenario=scenario.name,
        instrument=ledger.instrument,
        job=job_of(ledger),
        place=place_of(scenario, ledger),
        versions=dict(ledger.versions),
        passport={**ledger.passport, **passport},
        peak=ledger.peak.allocated_bytes,
        figures=figures(ledger),
    )


def path_of(folder: Path, name: str) -> Path:
    """Where a scenario's baseline is kept, below the project's folder."""
    return folder / FOLDER / f"{name}.json"


def read_baseline(folder: Path, name: str) -> Baseline | None:
    """The baseline of a scenario, if there is one.

    Raises:
        UsageError: the file is no baseline, or was written by another version of qmem.
    """
    path = path_of(folder, name)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    try:
        baseline = msgspec.json.decode(text, type=Baseline)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no baseline: {error}", hint="make it again with qmem baseline update") from error
    if baseline.schema_version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {baseline.schema_version}, this qmem reads {SCHEMA_VERSION}",
            hint="make it again with qmem baseline update",
        )
    return baseline


def check_storable(folder: Path) -> None:
    """Refuse before anything is measured where no baseline could be written.

    Raises:
        UnavailableError: naming what is in the way.
    """
    place = folder / FOLDER
    there = next(path for path in (place, *place.parents) if path.exists())
    why = "is no folder" if not there.is_dir() else "" if os.access(there, os.W_OK | os.X_OK) else "may not be written"
    if why:
        raise UnavailableError(f"baselines cannot be stored in {place}: {there} {why}")


def store_baseline(folder: Path, baseline: Baseline) -> Path:
    """Write a baseline whole or not at all, and return where it is.

    Raises:
        UnavailableError: it cannot be written; what was there is as it was.
    """
    path = path_of(folder, baseline.scenario)
    text = msgspec.json.format(msgspec.json.encode(baseline, order="sorted"), indent=1) + b"\n"
    try:
        write_whole(path, text)
    except OSError as error:
        raise UnavailableError(f"the baseline cannot be stored as {path}: {error.strerror}") from error
    return path
