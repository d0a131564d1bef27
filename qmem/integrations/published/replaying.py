"""Runs the published rows on the phantom, each by ``qmem profile`` in the environment that it was published with."""

import json
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from qmem.catalogue import find_model
from qmem.errors import UnavailableError
from qmem.integrations.environments import CHECKOUT, environments, python_of
from qmem.integrations.published.rows import Measured, Replay, Row, Rows, measured_of
from qmem.ledger import from_json

FOLDER = CHECKOUT / "build" / "published"
"""The ledgers that are there already; a row whose job or environment has changed has another file."""


def replay(rows: Rows, tell: Callable[[str], None], *, folder: Path = FOLDER) -> Replay:
    """Measure the rows that were not measured yet, and return all.

    Raises:
        UnavailableError: the environment cannot be built, or a run measured nothing.
    """
    python = python_of(rows.environment, tell)
    folder.mkdir(parents=True, exist_ok=True)
    return Replay(measured=tuple(_measured(rows, row, python, folder, tell) for row in rows.rows))


def write_job(rows: Rows, row: Row, folder: Path) -> Path:
    """Write the job file of a row, and the model's config beside it with the fields that the replay changes."""
    folder.mkdir(exist_ok=True)
    config = {**find_model(row.job["model"]).config, **rows.config, **row.config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = folder / "job.toml"
    fields = {**row.job, "model": str(folder)}
    path.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in fields.items()), encoding="utf-8")
    return path


def _measured(rows: Rows, row: Row, python: Path, folder: Path, tell: Callable[[str], None]) -> Measured:
    asked = digest(rows, row)
    ledger = folder / f"{row.id}-{asked}.json"
    if not ledger.is_file():
        tell(f"{row.id}: {row.what}")
        _profile(rows, row, python, ledger)
    return measured_of(row, asked, from_json(ledger.read_bytes()))


def _profile(rows: Rows, row: Row, python: Path, ledger: Path) -> None:
    """The loading is the library's own: what it leaves in the allocator's blocks is part of the published figures."""
    job, unfinished = write_job(rows, row, ledger.with_suffix("")), ledger.with_suffix(".new")
    done = subprocess.run(  # noqa: S603 - our own program
        [python, "-m", "qmem", "profile", "--job", job, "--phantom", rows.gpu, "--load", "--json", "-o", unfinished],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not unfinished.is_file():
        raise UnavailableError(f"{row.id} measured nothing: {done.stderr.strip()}")
    unfinished.replace(ledger)


def _toml(value: Any) -> str:
    """A value of a job as TOML: as JSON, but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)


def digest(rows: Rows, row: Row) -> str:
    """What a row asks of the phantom, in eight characters."""
    asked = (row.job, {**rows.config, **row.config}, rows.gpu, environments()[rows.environment].pins)
    return sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()[:8]
