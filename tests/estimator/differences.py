"""Where a walk leaves its recording: ``python tests/estimator/differences.py NAME [--stacks FOLDER]``.

Prints, stage by stage, how many allocations are the same, and the first that is not, with its neighbours: the real
one with its Python lines (where they were kept) beside the walked one with its rule.
"""

import argparse
import json
import lzma
import tempfile
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from recorded import events, gpu_of, job_of
from test_recorded_events import STAGES

from qmem.estimator import trace_of

Event = tuple[int, str]


def real_events(name: str, stacks: Path | None) -> dict[tuple[int, str], list[Event]]:
    """The recorded events by step and stage."""
    phases = events(name)["phases"]
    lines: dict[str, list[str]] = {}
    if stacks is not None:
        with lzma.open(stacks / f"{name}.json.xz", "rt") as file:
            lines = json.load(file)
    found: dict[tuple[int, str], list[Event]] = {}
    for phase, sizes in phases.items():
        prefix, _, rest = phase.rpartition(".")
        step = int(prefix.removeprefix("step") or 0)
        stage = next(stage for stage, words in STAGES.items() if rest.startswith(words))
        found.setdefault((step, stage), []).extend(zip(sizes, lines.get(phase, [""] * len(sizes)), strict=True))
    return found


def walked_events(name: str) -> dict[tuple[int, str], list[Event]]:
    """The walk's events by step and stage."""
    recording = events(name)
    with tempfile.TemporaryDirectory() as folder:
        trace = trace_of(job_of(recording, Path(folder)), gpu_of(recording))
    found: dict[tuple[int, str], list[Event]] = {}
    ends = [*trace.marks, trace.marks[-1]._replace(event=len(trace.events))]
    for mark, end in pairwise(ends):
        stage = "forward" if mark.phase == "loss" else mark.phase
        part = found.setdefault((mark.step, stage), [])
        for event in trace.events[mark.event : end.event]:
            handle = event if event >= 0 else ~event
            label = trace.label_table[trace.labels[handle]]
            size = trace.sizes[handle]
            part.append((size if event >= 0 else -size, f"{label.kind.label} | {label.owner} | {label.because}"))
    return found


def show(real: list[Event], walked: list[Event], asked: Any) -> None:
    """The first difference with what stands around it."""
    pairs = list(zip_longest(real, walked, fillvalue=(0, "-")))
    first = next((index for index, (a, b) in enumerate(pairs) if a[0] != b[0]), None)
    if first is None:
        return
    for index, (a, b) in enumerate(pairs[max(0, first - 3) : first + asked.lines], max(0, first - 3)):
        mark = " " if a[0] == b[0] else "*"
        print(f"  {mark}{index:5d} {a[0]:>14,} {a[1][: asked.width]}\n        {b[0]:>14,} {b[1]}")


def main() -> None:
    """Compare one recording with its walk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--stacks", type=Path)
    parser.add_argument("--smallest", type=int, default=40_000)
    parser.add_argument("--frees", action="store_true", help="compare the frees as well")
    parser.add_argument("--lines", type=int, default=12)
    parser.add_argument("--width", type=int, default=300)
    asked = parser.parse_args()
    real, walked = real_events(asked.name, asked.stacks), walked_events(asked.name)
    for key in real:
        a, b = (
            [e for e in side.get(key, []) if abs(e[0]) >= asked.smallest and (asked.frees or e[0] > 0)]
            for side in (real, walked)
        )
        same = sum(x[0] == y[0] for x, y in zip(a, b, strict=False))
        net = [sum(size for size, _ in side.get(key, [])) for side in (real, walked)]
        print(f"step {key[0]} {key[1]}: real {len(a)}, walked {len(b)}, same {same}; net {net[0]:,} {net[1]:,}")
        show(a, b, asked)


if __name__ == "__main__":
    main()
