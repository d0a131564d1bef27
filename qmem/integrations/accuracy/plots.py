"""The error table in three pictures: predicted against measured, and the errors by regime and by model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qmem.integrations.accuracy.scoring import Row

MIB = 1 << 20
MARKERS = {
    "o": ("allocated", "allocated, full replay"),
    "|": ("reserved", "reserved, full replay"),
    "+": ("quick_allocated", "allocated, quick replay"),
    "1": ("quick_reserved", "reserved, quick replay"),
    "x": ("grain", "allocated, no replay"),
}
"""What an error is drawn as: its field in a row and its name in the legend."""
LEAST_RANGE = 1.0
"""Percent that every picture of errors shows, so that noise does not fill it."""
LINEAR = 0.01
"""Percent around zero where the axis is no logarithm."""

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
    axes.set(ylabel="peak allocated, estimate with full replay (MiB)", title="Predicted against measured")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    _save(pyplot, figure, path)


def _errors(pyplot: Any, rows: Sequence[Row], path: Path, by: str) -> None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row, by), []).append(row)
    names = sorted(groups, reverse=True)
    figure, axes = pyplot.subplots(figsize=(8, 1.8 + 0.28 * len(names)), layout="constrained")
    for height, name in enumerate(names):
        colours = [COLOURS[row.state] for row in groups[name]]
        for marker, (measure, _) in MARKERS.items():
            shares = [100 * getattr(row, measure) for row in groups[name]]
            axes.scatter(shares, [height] * len(shares), marker=marker, c=colours, s=26, alpha=0.8)
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [f"{name} ({len(groups[name])})" for name in names])
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)
    _scale(axes, max(LEAST_RANGE, *(100 * abs(getattr(row, of)) for row in rows for of, _ in MARKERS.values())))
    axes.set(title=f"Error of the peak by {by} (jobs)")
    _legend(pyplot, figure, {row.state for row in rows})
    _save(pyplot, figure, path)


def _scale(axes: Any, most: float) -> None:
    """Percent, as powers of ten but near zero; too high is on the right."""
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.set_xlim(-1.2 * most, 1.2 * most)
    ticks = [sign * 10.0**power for sign in (-1, 1) for power in range(-2, 3) if 10.0**power <= 1.2 * most]
    axes.set_xticks([*ticks, 0.0], [*(f"{tick:+g}" for tick in ticks), "0"])
    axes.set(xlabel="error in %: the estimate less what was measured (simulated), of what was measured")


def _legend(pyplot: Any, figure: Any, states: set[str]) -> None:
    def key(marker: str, colour: str, label: str) -> Any:
        return pyplot.Line2D([], [], linestyle="", marker=marker, color=colour, label=label)

    measures = [key(marker, "#444444", name) for marker, (_, name) in MARKERS.items()]
    colours = [key("s", colour, state) for state, colour in COLOURS.items() if state in states]
    figure.legend(handles=measures + colours, loc="outside lower center", ncols=4, frameon=False, fontsize="small")


def _group(row: Row, by: str) -> str:
    if by == "model":
        return row.job.model.rpartition("/")[2]
    return f"{row.job.stack} · {row.job.method}{' · experts' if row.experts else ''}"


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
