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


def on_phantom(*words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """A script, or what follows ``python``, on a simulated A100."""
    if not availability().can_run:
        pytest.skip(availability().why)
    command = [sys.executable, "-m", "qmem.phantom", "--gpu", "a100-80", "--", *words]
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
            runs[words] = Watched(folder, on_phantom(str(SCRIPTS / "bare_loop.py"), str(folder), *words))
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


def test_processes_that_train_together_leave_a_ledger_and_a_page_each(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2")
    done = on_phantom(*launcher, str(SCRIPTS / "bare_loop.py"), str(tmp_path), "together", "short")
    assert done.returncode == 0, done.stderr[-3000:]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["run-rank0.json", "run-rank0.md", "run-rank1.json", "run-rank1.md"]
    for rank in range(2):
        ledger = from_json((tmp_path / f"run-rank{rank}.json").read_bytes())
        assert ledger.passport["rank"] == f"{rank} of 2"


@pytest.mark.parametrize(("variables", "rank"), [
    ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, (3, 8)),
    ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
    ({"RANK": "0", "WORLD_SIZE": "1"}, None),
    ({"RANK": "first", "WORLD_SIZE": "2"}, None),
    ({"RANK": "1"}, None),
])  # fmt: skip
def test_the_rank_is_known_before_there_is_a_group(monkeypatch, variables, rank):
    from qmem.profiler.watching.ranks import rank_of_process

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_of_process() == rank


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


def test_without_a_gpu_it_says_so_and_the_training_goes_on():
    program = (
        "import torch, qmem\n"
        "model = torch.nn.Linear(2, 2)\n"
        "with qmem.watch(model) as watching: print(model(torch.ones(2)).shape)\n"
        "print(watching.metrics(), watching.ledger)"
    )  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    assert done.stdout == "torch.Size([2])\n{} None\n"
    assert "qmem measures nothing: this machine has no GPU that CUDA can use; see qmem doctor" in done.stderr


@pytest.fixture(scope="module")
def bad_ends(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("ends")
    return Watched(folder, on_phantom(str(SCRIPTS / "bad_ends.py"), str(folder)))


def test_what_ends_a_block_is_what_ended_the_training(bad_ends):
    assert bad_ends.said["interrupted"] == ["KeyboardInterrupt: ", "interrupted"]
    assert bad_ends.said["gone"] == "complete"
    assert "qmem stores nothing: the profile cannot be stored as" in bad_ends.errors


@pytest.mark.parametrize(("what", "message"), [
    ("no module", "UsageError: a str cannot be watched; give the outermost torch.nn.Module that is called"),
    ("no optimizer", "UsageError: a str is no optimizer of torch; leave it out, or give one"),
    ("two models", "UsageError: this process is watched already, for its Sequential, and torch has one set"),
    ("detail within", "UsageError: this process is watched already, without detail; ask the outer watch for detail"),
])  # fmt: skip
def test_what_cannot_be_watched_is_refused_and_leaves_nothing_behind(bad_ends, what, message):
    assert bad_ends.said[what].startswith(message)


def test_a_watch_within_another_shares_it(bad_ends):
    assert bad_ends.said["shared"] == [1, 2]


def test_the_step_of_an_optimizer_that_was_not_named_has_no_phase(bad_ends):
    (warning,) = bad_ends.said["another optimizer"]
    assert warning.startswith("the step of an optimizer began that was not named to be watched: its phase is unknown")


def test_what_was_before_a_watch_and_after_it_is_not_of_it(bad_ends):
    assert bad_ends.said["after a shortage"] == []
    assert bad_ends.said["given back"] == [True, "complete"]


def test_a_model_on_another_device_is_refused_or_said_to_lie_there_too(tmp_path):
    program = (
        "import torch, qmem\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).to('cuda:1')\n"
        "try:\n"
        "    with qmem.watch(model): pass\n"
        "except qmem.errors.UsageError as error: print(error)\n"
        "model[0].cuda(0)\n"
        "with qmem.watch(model, path='run.json') as watching: pass\n"
        "print(watching.ledger.warnings[-1])"
    )
    if not availability().can_run:
        pytest.skip(availability().why)
    command = [sys.executable, "-m", "qmem.phantom", "--gpu", "l4", "--devices", "2", "--", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=tmp_path)
    assert done.stdout == (
        "the model lies on cuda:1, and counters are read of the current device, cuda:0; "
        "call torch.cuda.set_device(1) first\n"
        "the model lies on cuda:1 too: only cuda:0 was measured\n"
    )


def test_a_path_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    from qmem.errors import UsageError
    from qmem.integrations.watch import Watching

    with pytest.raises(UsageError, match="there is no folder"):
        Watching(tmp_path / "missing" / "run.json", detail=False)
