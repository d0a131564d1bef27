"""The published runs on a real card against the estimate: a section of the error table.

The runs and their jobs stand in ``qmem.integrations.published``; here they are estimated.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qmem.catalogue import find_gpu
from qmem.estimator import estimate
from qmem.integrations.accuracy.scoring import middle
from qmem.integrations.published.replaying import write_job
from qmem.integrations.published.report import described
from qmem.integrations.published.rows import FIGURES, Row, Rows, read_replay, read_rows
from qmem.job import make_job
from qmem.job.file import read_job_file
from qmem.ledger import Interval, Ledger
from qmem.planner import verdict

MIB = 1 << 20

INTRODUCTION = """
## Published rows

Peaks that others measured on a real A100-80GB with torch's own counters ([figures]({figures})),
estimated with the versions and facts of those runs, worst first. Nothing in the estimate was fitted to them; that the
trainer had resized the embeddings was found by the difference, then in its source
([phantom-vs-published.md](phantom-vs-published.md)).
Error of the full replay: {exact} of {n_rows} equal to the byte, median {median:.4%}, worst {worst:+.3%}.

* *phantom*: what the real libraries allocate on the simulated card, off by.
* *device*: what the estimate says the card must hold, with the CUDA context. Where that is more than the card has,
  torch gives unused segments back and tries again.
* *nvidia-smi*: the published figure of the same run, less what the card held before, sampled once a second.
* *unsplit ends*: the allocator hands out a free block whole where at most 1 MiB of it would remain, so a tensor above
  1 MiB counts for up to 1 MiB more, depending on which block it finds.

"""

COLUMNS = ("row", "job", "published peak", "full replay", "off by", "quick, off by", "phantom, off by", "device MiB",
           "nvidia-smi MiB", "why")  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n"

LEFT_OUT: tuple[tuple[str, int, str], ...] = (
    ("the same figures, `foak` kernels", 12, "cross-entropy, RMSNorm and RoPE in fused Triton kernels"),
    ("the same figures, `autogptq`", 2, "a base quantized by GPTQ"),
    ("earlier versions of the figures", 30, "transformers 4.39.3, 4.43.3 and 4.45.2; six rows are GPTQ's"),
    ("`a100_80gb_liger.csv` beside them", 27, "fused kernels, a fused head, GPTQ; transformers 4.45.2"),
    ("`refs_orca/a100_80gb_pf.csv` beside them", 20, "batches of unequal or no padding; transformers 4.44.2"),
    ("[litgpt](https://github.com/Lightning-AI/litgpt), resource tables, config hub", 16, "its own trainer and models"),
    ("[peft](https://github.com/huggingface/peft), method comparison", 47, "batches of unequal lengths"),
    ("[ms-swift](https://github.com/modelscope/ms-swift), benchmark", 32, "its own trainer, of unpublished versions"),
    ("[Qwen](https://github.com/QwenLM/Qwen), Qwen-VL", 45, "what was counted and in which unit is not published"),
    ("[Unsloth](https://github.com/unslothai/notebooks), TRL notebooks", 56, "its own kernels; unequal batches"),
    ("others, by nvidia-smi", 9, "what the card held besides; programs not published in full"),
)
"""Published rows of one card that are not scored: where they stand, how many were read, and what is not modelled."""

LEFT_OUT_HEAD = """
### Not scored

Other published figures of one card, each with what the estimate does not model.

| where | rows | not modelled |
|---|--:|---|
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
        return self.off(self.full) / self.row.published.peak_allocated_bytes

    @property
    def quick_error(self) -> float:
        """Of the quick one."""
        return self.off(self.quick) / self.row.published.peak_allocated_bytes

    @property
    def why(self) -> str:
        """Of what the error of the full replay is made up."""
        off = self.off(self.full)
        if not off:
            return ""
        kept = self.row.kept
        mask = f"{kept:,} B are the mask that checkpointing keeps with sdpa and flash_attention_2 does not have"
        ends = f"{off - kept:+,} B are unsplit ends of blocks"
        return "; ".join(filter(None, (mask if kept else "", ends, self.row.miss)))

    def off(self, ledger: Ledger) -> int:
        """Bytes that a ledger's peak is off by."""
        allocated = ledger.peak.allocated_bytes
        assert allocated is not None, "a replay was asked for"
        return allocated - self.row.published.peak_allocated_bytes


def score_published() -> list[Score]:
    """Every published row, the worst first."""
    rows = read_rows()
    peaks = {one.id: one.peak_allocated_bytes for one in read_replay(FIGURES).measured}
    scores = [_score(rows, row, peaks.get(row.id)) for row in rows.rows]
    return sorted(scores, key=lambda score: (-abs(score.error), score.row.id))


def _score(rows: Rows, row: Row, phantom: int | None) -> Score:
    gpu = find_gpu(rows.gpu)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(read_job_file(str(write_job(rows, row, Path(folder)))))
        full, quick = (estimate(job, gpu, replay=mode) for mode in ("full", "quick"))
    off = None if phantom is None else phantom / row.published.peak_allocated_bytes - 1
    return Score(row, full, quick, verdict(full, gpu).need, off)


def published_errors(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Bytes that each row is off by: what a later version must not exceed."""
    return {
        score.row.id: {"allocated, full": score.off(score.full), "allocated, quick": score.off(score.quick)}
        for score in sorted(scores, key=lambda score: score.row.id)
    }


def section(scores: Sequence[Score]) -> str:
    """The section of the report."""
    errors = [score.error for score in scores]
    source = read_rows().source
    head = INTRODUCTION.format(
        figures=f"{source.repository}/blob/{source.commit}/{source.figures}",
        median=middle(errors),
        exact=sum(not error for error in errors),
        n_rows=len(errors),
        worst=max(errors, key=abs),
    )
    left_out = "".join(f"| {where} | {n_rows} | {why} |\n" for where, n_rows, why in LEFT_OUT)
    return head + HEADER + "".join(_line(score) for score in scores) + LEFT_OUT_HEAD + left_out


def _line(score: Score) -> str:
    row, device = score.row, score.device
    cells = (
        row.id,
        described(row),
        f"{row.published.peak_allocated_bytes:,}",
        f"{score.full.peak.allocated_bytes:,}",
        f"{score.error:+.4%}",
        f"{score.quick_error:+.4%}",
        "not run yet" if score.phantom is None else f"{score.phantom:+.4%}",
        f"{device.low // MIB:,} to {device.high // MIB:,}",
        f"{row.published.nvidia_smi_mib:,}",
        score.why,
    )
    return f"| {' | '.join(cells)} |\n"
