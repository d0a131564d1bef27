"""``python -m qmem.integrations.accuracy``: measure the grid, score the estimate, write the report."""

import os
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from qmem.errors import QmemError
from qmem.integrations.accuracy import writing
from qmem.integrations.accuracy.grid import GRID, MEASURED, Entry, read_grid, read_measured
from qmem.integrations.accuracy.scoring import Listed, Row, score

REPORT = Path("reports") / "accuracy.md"
CHECKED = Path("qmem") / "catalogue" / "checked.json"


@click.command()
@click.option("--grid", type=click.Path(path_type=Path), default=GRID, help="The jobs; the project's own by default.")
@click.option("--measured", type=click.Path(path_type=Path), default=MEASURED, help="Where measurements are kept.")
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, help="The page to write.")
@click.option("--only", multiple=True, metavar="NAME", help="Measure this job only; may be repeated.")
@click.option("--workers", type=click.IntRange(1), default=max(1, (os.cpu_count() or 2) // 2), help="Jobs at once.")
@click.option("--measure/--no-measure", default=True, help="Run what is not measured yet.")
def main(grid: Path, measured: Path, report: Path, only: tuple[str, ...], workers: int, *, measure: bool) -> None:
    """Measure what is missing, estimate every job, write the report with its plots and the regimes that were checked.

    Run it in the root of the project.  It goes on where it was stopped.
    """
    try:
        entries = read_grid(grid)
        if measure:
            _measure([entry for entry in entries if not only or entry.name in only], measured, workers)
        _write(entries, measured, report, writes_checked=grid == GRID)
    except QmemError as error:
        raise SystemExit(f"qmem: {error}") from error
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was measured is kept\n")
        raise SystemExit(130) from None


def _measure(entries: list[Entry], folder: Path, workers: int) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from qmem.integrations.accuracy.measuring import measure  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        missing = sum(read_measured(folder, entry.name) is None for entry in entries)
        task = progress.add_task("measuring", total=missing)

        def done(entry: Entry) -> None:
            progress.update(task, advance=1, description=entry.name)

        measure(entries, folder, workers=workers, done=done)


def _write(entries: tuple[Entry, ...], folder: Path, report: Path, *, writes_checked: bool) -> None:
    from qmem.integrations.accuracy.plots import plot  # noqa: PLC0415
    from qmem.integrations.accuracy.published import published_errors, score_published  # noqa: PLC0415

    rows, listed, versions = scored(entries, folder)
    published = score_published() if writes_checked else []
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(writing.report(rows, listed, versions, published))
    if rows:
        plot(rows, report.with_suffix(""))
    _write_errors(report.with_suffix("") / "errors.json", writing.errors(rows))
    if published:
        _write_errors(report.with_suffix("") / "published.json", published_errors(published))
    if writes_checked and rows:
        _write_json(CHECKED, writing.checked(rows))


def _write_errors(path: Path, errors: writing.AllErrors) -> None:
    """Keep the errors, and tell which of them are larger than those that were kept before."""
    if path.is_file():
        for where, change in writing.grown(msgspec.json.decode(path.read_bytes()), errors).items():
            sys.stderr.write(f"grown: {where}: {change}\n")
    _write_json(path, errors)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def scored(entries: tuple[Entry, ...], folder: Path) -> tuple[list[Row], list[Listed], dict[str, str]]:
    """The rows, the jobs that have none, and the versions of the libraries that ran."""
    rows: list[Row] = []
    listed: list[Listed] = []
    versions: dict[str, str] = {}
    for entry in entries:
        measured = read_measured(folder, entry.name)
        outcome = score(entry, measured)
        if isinstance(outcome, Row):
            rows.append(outcome)
            versions |= getattr(measured, "versions", {})
        else:
            listed.append(outcome)
    return rows, listed, versions


if __name__ == "__main__":
    main()
