"""The published runs on a real card against the estimate: a section of the error table.

The runs and their jobs stand in ``qmem.integrations.published``; here they are estimated.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from qmem.catalogue import find_gpu
from qmem.estimator import estimate
from qmem.integrations.accuracy.scoring import middle
from qmem.integrations.command import REPORTS
from qmem.integrations.published.replaying import write_job
from qmem.integrations.published.report import described
from qmem.integrations.published.rows import Replay, Row, Rows, read_rows
from qmem.job import make_job
from qmem.job.file import read_job_file
from qmem.ledger import Interval, Ledger
from qmem.planner import verdict

EXPLAINED = 0.001
"""A share of the published peak up to which a row counts as hit."""

MIB = 1 << 20

INTRODUCTION = """
## Published rows

Peaks that others measured on a real A100-80GB with torch's own counters ([figures]({figures})),
estimated with the versions and facts of those runs, worst first. Nothing was fitted to them.
Median error of the full replay {median:.3%}, worst {worst:+.3%}.

* *phantom*: what the real libraries allocate on the simulated card, off by.
* *device*: what the estimate says the card must hold, with the CUDA context. Where that is more than the card has,
  torch gives unused segments back and tries again.
* *nvidia-smi*: the published figure of the same run, less what the card held before, sampled once a second.

"""

COLUMNS = ("row", "job", "published peak", "full replay", "off by", "quick, off by", "phantom, off by", "device MiB",
           "nvidia-smi MiB", "why")  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n"

LEFT_OUT = """
Left out are rows of other sources and those with fused kernels, GPTQ bases or padding-free batches, whose programs are
not modelled or not published in full, and more of the same figures at other batches and sizes, not replayed yet.
"""


class Score(NamedTuple):
    """A published row and what it is estimated as.  Errors are shares of the published peak.

    Attributes:
        device: bytes that its card must hold, at the full replay.
        phantom: what the phantom is off by, where it ran.
    """

    row: Row
    full: Ledger
    quick: Ledger
    device: Interval
    phantom: float | None

    @property
    def error(self) -> float:
        """Of the full replay."""
        return self._share(self.full)

    @property
    def quick_error(self) -> float:
        """Of the quick one."""
        return self._share(self.quick)

    def _share(self, ledger: Ledger) -> float:
        allocated = ledger.peak.allocated_bytes
        assert allocated is not None, "a replay was asked for"
        return allocated / self.row.published.peak_allocated_bytes - 1


def score_published() -> list[Score]:
    """Every published row, the worst first."""
    rows = read_rows()
    replay = msgspec.json.decode((REPORTS / "phantom-vs-published.json").read_bytes(), type=Replay)
    peaks = {one.id: one.peak_allocated_bytes for one in replay.measured}
    scores = [_score(rows, row, peaks.get(row.id)) for row in rows.rows]
    return sorted(scores, key=lambda score: (-abs(score.error), score.row.id))


def _score(rows: Rows, row: Row, phantom: int | None) -> Score:
    gpu = find_gpu(rows.gpu)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(read_job_file(str(write_job(rows, row, Path(folder)))))
        full, quick = (estimate(job, gpu, replay=mode) for mode in ("full", "quick"))
    off = None if phantom is None else phantom / row.published.peak_allocated_bytes - 1
    return Score(row, full, quick, verdict(full, gpu).need, off)


def section(scores: Sequence[Score]) -> str:
    """The section of the report."""
    errors = [score.error for score in scores]
    source = read_rows().source
    head = INTRODUCTION.format(
        figures=f"{source.repository}/blob/{source.commit}/{source.figures}",
        median=middle(errors),
        worst=max(errors, key=abs),
    )
    return head + HEADER + "".join(_line(score) for score in scores) + LEFT_OUT


def _line(score: Score) -> str:
    row, device = score.row, score.device
    cells = (
        row.id,
        described(row),
        f"{row.published.peak_allocated_bytes:,}",
        f"{score.full.peak.allocated_bytes:,}",
        f"{score.error:+.4%}",
        f"{score.quick_error:+.4%}",
        "" if score.phantom is None else f"{score.phantom:+.4%}",
        f"{device.low // MIB:,} to {device.high // MIB:,}",
        f"{row.published.nvidia_smi_mib:,}",
        "" if abs(score.error) <= EXPLAINED else row.miss or "not known",
    )
    return f"| {' | '.join(cells)} |\n"
