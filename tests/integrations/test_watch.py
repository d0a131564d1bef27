"""``with qmem.watch(...)`` around a bare loop on the phantom, in processes of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qmem.ledger import Kind, Ledger, from_json
from qmem.phantom import availability

pytestmark = pytest.mark.libraries

SCRIPTS = Path(__file__).with_name("scripts")
MIB = 1024**2
WEIGHTS = (1024 * 4096 + 4096 + 4096 * 1024 + 1024) * 4


def on_phantom(script: str, *words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """A script of this folder on a simulated A100."""
    if not availability().can_run:
        pytest.skip(availability().why)
    command = [sys.executable, "-m", "qmem.phantom", "--gpu", "a100-80", "--", str(SCRIPTS / script), *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=cwd
    )  # fmt: skip


class Watched:
    """What a script said, and the ledger that it left."""

    def __init__(self, folder: Path, done: "subprocess.CompletedProcess[str]") -> None:
        assert done.returncode == 0, done.stderr[-3000:]
        self.said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.folder = folder
        self.errors = done.stderr

    @property
    def ledger(self) -> Ledger:
        return from_json((self.folder / "run.json").read_bytes())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Watched]:
    """Runs the bare loop with some words; the same words are not run twice."""
    runs: dict[tuple[str, ...], Watched] = {}

    def run(*words: str) -> Watched:
        if words not in runs:
            folder = tmp_path_factory.mktemp("watch")
            runs[words] = Watched(folder, on_phantom("bare_loop.py", str(folder), *words))
        return runs[words]

    return run


def peaks(ledger: Ledger) -> dict[str, int]:
    return {
        str(reading.moment): reading.n_bytes
        for reading in ledger.readings
        if (reading.waterline, reading.measure) == ("allocated", "peak") and isinstance(reading.n_bytes, int)
    }


def test_phases_and_micro_steps_come_from_the_loop_itself(watched):
    ledger = watched().ledger
    of_step_2 = [name for name in peaks(ledger) if "of step 2" in name]
    assert of_step_2 == [
        "forward of step 2",
        "backward of step 2",
        "forward of step 2, micro-step 2",
        "backward of step 2, micro-step 2",
        "optimizer step of step 2",
    ]
    assert peaks(ledger)["load"] < peaks(ledger)["backward of step 2"]
    assert (ledger.state, ledger.ended, ledger.watched) == ("clean", "complete", "bare_loop.py, watched")


def test_counters_alone_name_what_lives_on(watched):
    ledger = watched().ledger
    kinds = ledger.by_kind(ledger.peak.moment)
    assert kinds[Kind.WEIGHT_32BIT] == WEIGHTS
    assert kinds[Kind.OPTIMIZER_STATE] - 2 * WEIGHTS in range(4 * 512)  # the steps' counters are tensors too
    assert Kind.INTERMEDIATE not in kinds
    assert any("detail=True" in sentence for sentence in ledger.assumptions)


def test_with_detail_every_byte_of_the_steady_peak_has_an_owner(watched):
    ledger = watched("detail").ledger
    kinds = ledger.by_kind(ledger.peak.moment)
    assert ledger.peak.moment.step > 1
    assert Kind.UNEXPLAINED not in kinds
    named = sum(n_bytes for kind, n_bytes in kinds.items() if kind is not Kind.ROUNDING)
    assert named == ledger.peak.requested_bytes
    assert kinds[Kind.GRADIENT] == WEIGHTS


def test_looking_closer_does_not_change_the_counters(watched):
    counted, looked = peaks(watched().ledger), peaks(watched("detail").ledger)
    both = counted.keys() & looked.keys()
    assert len(both) > 10
    assert {name: counted[name] for name in both} == {name: looked[name] for name in both}


def test_what_is_kept_from_step_to_step_is_named_by_its_line(watched):
    clean, kept = watched("detail").ledger, watched("detail", "keep").ledger
    last = max(reading.moment.step for reading in kept.readings)
    name = f"forward of step {last}"
    assert peaks(kept)[name] - peaks(clean)[name] == (last - 1) * MIB
    moment = next(r.moment for r in kept.readings if str(r.moment) == name and r.measure == "peak")
    owners = [item for item in kept.at(moment) if item.owner.startswith("kept from step to step")]
    assert sum(item.n_bytes for item in owners) == (last - 1) * MIB
    assert all("bare_loop.py:" in item.owner for item in owners)


def test_peaks_are_told_as_metrics(watched):
    metrics = watched().said["metrics"]
    assert metrics["qmem/peak_allocated_bytes"] == max(peaks(watched().ledger).values())
    assert metrics["qmem/backward_peak_allocated_bytes"] == max(
        n_bytes for name, n_bytes in peaks(watched().ledger).items() if name.startswith("backward")
    )
    assert metrics["qmem/peak_reserved_bytes"] >= metrics["qmem/peak_allocated_bytes"]


def test_no_hook_is_left_behind(watched):
    assert watched().said["left"] == ["torch.autograd", 0]


def test_out_of_memory_leaves_a_report_of_what_held_it_and_of_fragmentation(watched):
    run = watched("short")
    ledger, page = run.ledger, (run.folder / "run.md").read_text()
    assert run.said["metrics"] == {"caught": True}
    assert ledger.ended == "out of memory"
    assert ledger.counters["asked where memory ended"] == 100 * 1024 * MIB
    last = max((reading.moment for reading in ledger.readings), key=lambda moment: moment.tick)
    kinds = ledger.by_kind(last)
    assert (kinds[Kind.WEIGHT_32BIT], kinds[Kind.OPTIMIZER_STATE] // WEIGHTS) == (WEIGHTS, 2)
    assert "lay unused between blocks in torch's segments; together too little" in " ".join(ledger.warnings)
    assert "Where memory ended, the optimizer step of step 1: the largest holdings" in page
    assert "2.weight" in page
    assert "run.md" in run.errors


def test_the_example_of_the_readme_runs(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## In a training run")[2]
    script = tmp_path / "readme.py"
    script.write_text(section.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    done = on_phantom(str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    stored, peak = done.stdout.split()
    ledger = from_json((tmp_path / stored).read_bytes())
    assert (ledger.model, ledger.peak.allocated_bytes) == ("Sequential", int(peak))


def test_without_a_gpu_it_says_so():
    program = (
        "import torch, qmem\n"
        "model = torch.nn.Linear(2, 2)\n"
        "with qmem.watch(model, None): pass"
    )  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert "UnavailableError: this machine has no GPU that CUDA can use; see qmem doctor" in done.stderr


def test_a_path_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    from qmem.errors import UsageError
    from qmem.integrations.watch import Watching

    with pytest.raises(UsageError, match="there is no folder"):
        Watching(tmp_path / "missing" / "run.json", detail=False)
