"""Real training steps, recorded: the truth that the walk is compared with.

``golden/totals.json`` has torch's counters of whole jobs, ``golden/events/*.json.xz`` every allocation (its bytes) and
free (minus its bytes) of models cut to few layers, phase by phase.  ``passport`` says how they were recorded; what
``record.py`` has recorded since stands in its own file with its counters and its versions.
"""

import json
import lzma
from pathlib import Path
from typing import Any

from qmem.catalogue import Gpu, find_gpu, find_model
from qmem.job import Job, make_job

GOLDEN = Path(__file__).parent / "golden"

_RECORDINGS = json.loads((GOLDEN / "totals.json").read_text())
PASSPORT: dict[str, str] = _RECORDINGS["passport"]
TOTALS: dict[str, dict[str, Any]] = _RECORDINGS["jobs"]
EVENTS = {path.name.removesuffix(".json.xz"): path for path in sorted((GOLDEN / "events").glob("*.json.xz"))}

PHASES = {"forward": ("forward", "loss"), "backward": ("backward",), "optimizer": ("optimizer step",)}
"""Phases of the recordings and their names in a ledger; those of micro-steps carry a number."""


def events(name: str) -> dict[str, Any]:
    """One recorded job with its events."""
    with lzma.open(EVENTS[name], "rt") as file:
        recorded: dict[str, Any] = json.load(file)
    return recorded


TOTALS |= {name: events(name) for name in EVENTS if name not in TOTALS}


def model_of(recorded: dict[str, Any], folder: Path) -> str:
    """The model of a recording: its name, or where its config was changed a folder with that config."""
    changes = {**recorded.get("config", {})}
    if recorded.get("layers") is not None:
        changes["num_hidden_layers"] = recorded["layers"]
    name: str = recorded["job"]["model"]
    if not changes:
        return name
    path = folder / "config.json"
    path.write_text(json.dumps({**find_model(name).config, **changes}))
    return str(path)


def job_of(recorded: dict[str, Any], folder: Path) -> Job:
    """The recorded job; a model whose config was changed is written to ``folder``."""
    return make_job({**recorded["job"], "model": model_of(recorded, folder)})


def gpu_of(recorded: dict[str, Any]) -> Gpu:
    """The card whose kernels were chosen."""
    return find_gpu(recorded["gpu"])


def phases_of(recorded_phase: str) -> tuple[str, ...]:
    """What a ledger calls a phase of a recording: ``backward1`` is the backward of the second micro-step."""
    return PHASES[recorded_phase.rstrip("0123456789")]
