"""Record real training steps on a phantom GPU: ``python tests/estimator/record.py JOBS.json [NAME ...]``.

``JOBS.json`` maps a name to ``{"job": {fields}, "config": {changes to the model's config}, "gpu": "a100-80"}``.
Each job runs twice, in processes of its own: once as ``qmem profile`` runs it, for torch's counters, and once with the
allocator's history from the first byte, for its events (the history changes what is reserved).  A recording is one
file, ``golden/events/NAME.json.xz``; a name that is there is left alone.  With ``--stacks FOLDER`` the Python lines of
every event are kept there, for ``differences.py``.
"""

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from recorded import GOLDEN, model_of

from qmem.catalogue import find_gpu
from qmem.job import make_job
from qmem.ledger import Ledger
from qmem.profiler import profile
from qmem.profiler.environment import worker_environment
from qmem.profiler.protocol import Closed, Request

STEPS = 2
NAMES = {"loss": "forward", "optimizer step": "optimizer"}
"""How phases are called in recordings, where not by their own name."""


def record(name: str, wanted: dict[str, Any], stacks: Path | None) -> None:
    """Run one job twice and store what it did."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {**wanted["job"], "model": model_of(wanted, Path(folder))}
        job, gpu = make_job(fields), wanted.get("gpu", "a100-80")
        ledger = profile(job, phantom=find_gpu(gpu), steps=STEPS)
        if ledger.ended != "complete":
            raise SystemExit(f"{name}: {ledger.ended}")
        phases, lines = _history(Request(job=job, phantom=gpu, steps=STEPS))
    recording = {
        "name": name,
        "job": wanted["job"],
        "layers": None,
        "config": wanted.get("config", {}),
        "gpu": gpu,
        "state": ledger.state,
        "versions": ledger.versions,
        **_counters(ledger),
    }
    path = GOLDEN / "events" / f"{name}.json.xz"
    _write(path, {**recording, "phases": phases})
    if stacks is not None:
        stacks.mkdir(parents=True, exist_ok=True)
        _write(stacks / path.name, lines)
    print(f"{name}: {ledger.state}, peak {ledger.peak.allocated_bytes:,} B")


def _write(path: Path, content: Any) -> None:
    unfinished = path.with_suffix(".part")
    with lzma.open(unfinished, "wt", preset=9) as file:
        json.dump(content, file, separators=(",", ":"))
    unfinished.replace(path)


def _counters(ledger: Ledger) -> dict[str, Any]:
    waterlines = ("requested", "allocated", "reserved")

    def readings(step: int, phases: tuple[str, ...], waterline: str, measure: str) -> list[tuple[int, str]]:
        return [
            (r.n_bytes, r.moment.phase)
            for r in ledger.readings
            if (r.moment.step, r.waterline, r.measure) == (step, waterline, measure)
            and (not phases or r.moment.phase in phases)
            and r.counter.startswith("torch")
        ]

    def current(phase: str) -> dict[str, int]:
        return {line: readings(0, (phase,), line, "current")[-1][0] for line in waterlines}

    steps = []
    for step in range(1, STEPS + 1):
        _, fullest = max(readings(step, (), "requested", "peak"))
        steps.append(
            {f"peak_{line}": max(readings(step, (), line, "peak"))[0] for line in waterlines}
            | {f"closing_{line}": readings(step, (), line, "current")[-1][0] for line in waterlines[:2]}
            | {"managed": ledger.paged_bytes if step == STEPS else 0, "fullest_phase": NAMES.get(fullest, fullest)}
        )
    return {"after_load": current("load"), "after_prepare": current("prepare"), "steps": steps}


def _history(request: Request) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Run this file as a child that prints its events."""
    child = subprocess.run(
        [sys.executable, __file__, "--child"],
        input=msgspec.json.encode(request),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": worker_environment(request.job)["PYTHONHASHSEED"]},
    )
    if child.returncode:
        raise SystemExit(child.stderr.decode())
    printed = json.loads(child.stdout.splitlines()[-1])
    return printed["phases"], printed["lines"]


def _child() -> None:
    """Run the steps with the history on; the end of the last one ends the process."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    from qmem.profiler import worker

    worker._load_phantom(request)
    from qmem.profiler.device import DeviceCounters

    device = DeviceCounters()
    worker._import_libraries(request.job)
    import torch

    from qmem.profiler.running import run_job

    device.attach()
    torch.cuda.init()
    torch.cuda.memory._record_memory_history(context="alloc", stacks="python", max_entries=10_000_000)
    closed: list[tuple[str, int]] = []

    def tell(event: Any) -> None:
        if not isinstance(event, Closed):
            return
        place = event.place
        phase = NAMES.get(place.phase, place.phase)
        later = str(place.micro_step - 1) if place.micro_step > 1 else ""
        closed.append((f"step{place.step}.{phase}{later}" if place.step else phase, event.tick))
        if (place.step, place.phase) == (STEPS, "optimizer step"):
            _print_events(closed, torch.cuda.memory._snapshot()["device_traces"][0])
            sys.stdout.flush()
            os._exit(0)

    with worker._watching(request) as verdict:
        run_job(request, device, tell, verdict)


def _print_events(closed: list[tuple[str, int]], history: list[dict[str, Any]]) -> None:
    events = [entry for entry in history if entry["action"] in ("alloc", "free_completed")]
    phases: dict[str, list[int]] = {}
    lines: dict[str, list[str]] = {}
    for (_, first), (phase, last) in pairwise([("", 0), *closed]):
        part = events[first:last]
        phases.setdefault(phase, []).extend(e["size"] if e["action"] == "alloc" else -e["size"] for e in part)
        lines.setdefault(phase, []).extend(_python_lines(e) for e in part)
    print(json.dumps({"phases": phases, "lines": lines}))


def _python_lines(entry: dict[str, Any]) -> str:
    frames = [f for f in entry.get("frames", ()) if "qmem" not in f["filename"]][:4]
    return " < ".join(f"{'/'.join(f['filename'].split('/')[-2:])}:{f['line']} {f['name']}" for f in frames)


def main() -> None:
    """Record what is asked for and not there."""
    if sys.argv[1:] == ["--child"]:
        _child()
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--stacks", type=Path)
    asked = parser.parse_args()
    for name, wanted in json.loads(asked.jobs.read_text()).items():
        if (not asked.names or name in asked.names) and not (GOLDEN / "events" / f"{name}.json.xz").exists():
            record(name, wanted, asked.stacks)


if __name__ == "__main__":
    main()
