"""The error table in three pictures: predicted against measured, and the errors by regime and by model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qmem.integrations.accuracy.scoring import Row

MIB = 1 << 20
MARKERS = {"o": "allocated", "|": "reserved", "x": "grain"}
LEAST_RANGE = 1.0
"""Percent that every picture of errors shows, so that noise does not fill it."""

COLOURS = {"clean": "#1b6ca8", "assumed": "#d98c1f", "tainted": "#a03050"}


def plot(rows: Sequence[Row], folder: Path) -> None:
    """Write ``predicted.svg``, ``regimes.svg`` and ``models.svg``.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    _predicted(pyplot, rows, folder / "predicted.svg")
    _errors(pyplot, rows, folder / "regimes.svg", "regime")
    _errors(pyplot, rows, folder / "models.svg", "model")


def _pyplot() -> Any:
    from qmem.errors import UnavailableError  # noqa: PLC0415

    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(
            "the plots need matplotlib, not installed here", hint="pip install 'qmem-planner[plots]'"
        ) from error
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "qmem"  # the same picture gives the same file
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt


def _predicted(pyplot: Any, rows: Sequence[Row], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    for state, colour in COLOURS.items():
        chosen = [row for row in rows if row.state == state]
        if chosen:
            measured = [row.measured / MIB for row in chosen]
            predicted = [row.measured * (1 + row.allocated) / MIB for row in chosen]
            axes.scatter(measured, predicted, s=14, color=colour, label=f"{state} ({len(chosen)})", alpha=0.8)
    ends = [min(row.measured for row in rows) / MIB, max(row.measured for row in rows) / MIB]
    axes.plot(ends, ends, color="#888888", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="peak allocated, phantom (MiB, simulated)")
    axes.set(ylabel="peak allocated, estimate (MiB)", title="Predicted against measured")
    axes.legend(frameon=False)
    _save(pyplot, figure, path)


def _errors(pyplot: Any, rows: Sequence[Row], path: Path, by: str) -> None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row, by), []).append(row)
    names = sorted(groups, reverse=True)
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.28 * len(names)), layout="constrained")
    for height, name in enumerate(names):
        colours = [COLOURS[row.state] for row in groups[name]]
        for marker, measure in MARKERS.items():
            shares = [100 * getattr(row, measure) for row in groups[name]]
            axes.scatter(shares, [height] * len(shares), marker=marker, c=colours, s=22, alpha=0.8)
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [f"{name} ({len(groups[name])})" for name in names])
    axes.set_xscale("symlog", linthresh=0.01)
    most = max(LEAST_RANGE, *(100 * abs(getattr(row, measure)) for row in rows for measure in MARKERS.values()))
    axes.set_xlim(-1.2 * most, 1.2 * most)
    axes.set(xlabel="error of the peak in %: ● allocated, | reserved, × allocated without a replay")
    axes.set(title=f"Error by {by}")
    _save(pyplot, figure, path)


def _group(row: Row, by: str) -> str:
    if by == "model":
        return row.job.model.rpartition("/")[2]
    return f"{row.job.stack} · {row.job.method}{' · experts' if row.experts else ''}"


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
