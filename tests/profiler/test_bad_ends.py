"""Whatever happens to a run: one message, the right exit code, and what was measured is kept."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qmem.errors import UnavailableError
from qmem.ledger import Kind, from_json
from qmem.profiler import profile
from qmem.profiler.protocol import Entered, Started
from qmem.profiler.storing import place_of, store

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]


def run_qmem(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qmem", *arguments],
        cwd=cwd, env={**os.environ, "COLUMNS": "100", **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def notes(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("qmem: ")]


class Kills:
    """Kills the worker when a phase begins."""

    def __init__(self, phase: str) -> None:
        self.pid, self.phase = 0, phase

    def __call__(self, event) -> None:
        if isinstance(event, Started):
            self.pid = event.pid
        if isinstance(event, Entered) and event.place.phase == self.phase:
            os.kill(self.pid, signal.SIGKILL)


def test_what_a_killed_worker_had_measured_is_in_the_ledger(small_job, a100):
    ledger = profile(small_job(), phantom=a100, steps=30, on_progress=Kills("backward"))
    assert ledger.ended == "failed"
    assert "SIGKILL" in ledger.warnings[0]
    # The worker runs on until the signal reaches it, so it may have measured a little more.
    assert {"load", "prepare", "forward", "loss"} <= {reading.moment.phase for reading in ledger.readings}
    assert max(reading.moment.step for reading in ledger.readings) < 30
    assert any(item.kind is Kind.ADAPTER for item in ledger.items)


def test_a_worker_that_is_killed_before_it_measured_anything_is_one_message(small_job, a100):
    with pytest.raises(UnavailableError, match=r"nothing was measured: the worker was killed by SIGKILL"):
        profile(small_job(), phantom=a100, on_progress=Kills("load"))


def test_an_interrupt_ends_the_worker_and_keeps_what_was_measured(small_job, a100):
    seen = []

    def interrupt(event) -> None:
        seen.append(event)
        if isinstance(event, Entered) and event.place.phase == "forward":
            raise KeyboardInterrupt

    ledger = profile(small_job(), phantom=a100, steps=2, on_progress=interrupt)
    assert ledger.ended == "interrupted"
    assert ledger.peak.moment.phase in ("load", "prepare")
    pid = next(event.pid for event in seen if isinstance(event, Started))
    assert not Path("/proc", str(pid)).exists()


def test_a_card_that_is_too_small_is_exit_4_and_the_result_is_stored(small_model, tmp_path):
    done = run_qmem(
        "profile", str(small_model), "--seq", "2048", "--phantom", "a100-80", "--memory", "560MiB", cwd=tmp_path
    )
    assert done.returncode == 4, done.stderr
    warnings = [note for note in notes(done) if "out of memory" in note]
    assert len(warnings) == 1
    assert "Tried to allocate" in warnings[0]
    (stored,) = (tmp_path / "profiles" / "runs").rglob("*.json")
    ledger = from_json(stored.read_bytes())
    assert ledger.ended == "out of memory"
    assert ledger.counters["ooms"] > 0
    assert ledger.peak.allocated_bytes < 560 * 1024**2
    assert "out of memory" in done.stdout


def test_a_profiles_folder_that_cannot_be_written_is_exit_3_and_the_result_is_printed(small_model, tmp_path):
    (tmp_path / "profiles").write_text("in the way")
    done = run_qmem("profile", str(small_model), "--seq", "64", "--steps", "2", "--phantom", "l4", cwd=tmp_path)
    assert done.returncode == 3
    assert [note for note in notes(done) if "cannot be stored" in note] == notes(done)
    assert "At the peak" in done.stdout
    assert (tmp_path / "profiles").read_text() == "in the way"


def test_a_file_that_cannot_be_made_is_refused_before_the_run(small_model, tmp_path):
    done = run_qmem("profile", str(small_model), "--phantom", "l4", "-o", "nowhere/x.json", cwd=tmp_path)
    assert (done.returncode, len(notes(done))) == (2, 1)
    assert "there is no folder nowhere" in done.stderr


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from qmem.errors import UnavailableError
from qmem.ledger import from_json
from qmem.profiler.storing import store

place = Path(sys.argv[1])
ledger = from_json(place.read_bytes())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    store(ledger, place)
except UnavailableError as error:
    sys.exit(error.exit_code)
"""


def test_a_full_disk_leaves_the_stored_profile_as_it_was(profiled, tmp_path):
    """A limit on the size of files stands for the disk."""
    place = store(profiled(), tmp_path / "stored.json")
    before = place.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(place)], check=False)
    assert done.returncode == 3
    assert place.read_bytes() == before
    assert list(tmp_path.iterdir()) == [place]


def test_a_profile_is_stored_under_its_device_and_job(profiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = profiled()
    place = store(ledger)
    assert place == place_of(ledger)
    assert place.parts[:3] == ("profiles", "runs", "NVIDIA-A100-SXM4-80GB-phantom-81151-MiB")
    assert place.name.startswith("small-qwen3--qlora-r64-b1-s256-hf-")
    assert from_json(place.read_bytes()) == ledger
    assert place_of(profiled(stack="plain", optimizer="adamw_32bit")) != place


def test_a_missing_extra_is_named_with_what_to_install(small_job, a100, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnavailableError, match=r"a profile needs peft.*pip install 'qmem-planner\[profile\]'"):
        profile(small_job(), phantom=a100)


def test_an_extra_whose_installation_was_interrupted_is_named(small_model, tmp_path):
    broken = tmp_path / "site" / "accelerate"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("from .accelerator import Accelerator\n")
    done = run_qmem("profile", str(small_model), "--phantom", "l4", cwd=tmp_path, PYTHONPATH=str(broken.parent))
    assert done.returncode == 3
    assert len(notes(done)) == 1
    assert "accelerate" in done.stderr
    assert "pip install" in done.stderr


HALF_THERE = {
    "from .accelerator import Accelerator\n": "ModuleNotFoundError",
    "def broken(:\n": "SyntaxError",
    "import ctypes\nctypes.CDLL('libnothere.so')\n": "OSError",
}


@pytest.mark.parametrize("content", HALF_THERE, ids=HALF_THERE.values())
def test_whatever_a_half_installed_extra_raises_it_is_named(small_model, tmp_path, content):
    broken = tmp_path / "site" / "bitsandbytes"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(content)
    done = run_qmem("profile", str(small_model), "--phantom", "l4", cwd=tmp_path, PYTHONPATH=str(broken.parent))
    assert done.returncode == 3
    (note,) = notes(done)
    assert f"needs bitsandbytes, which is installed here but cannot be imported: {HALF_THERE[content]}" in note
    assert "pip install" in note
    assert not (tmp_path / "profiles").exists()


def test_a_stdout_that_cannot_be_written_is_exit_3_and_the_profile_is_stored_before(small_model, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qmem", "profile", str(small_model), "--seq", "64", "--steps", "2",
             "--phantom", "l4", "-o", "out.json"],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert "the result cannot be written" in done.stderr
    assert from_json((tmp_path / "out.json").read_bytes()).ended == "complete"


STORES = """
import sys
from pathlib import Path
from qmem.ledger import from_json
from qmem.profiler.storing import store

ledger = from_json(Path(sys.argv[1]).read_bytes())
for _ in range(50):
    store(ledger, Path(sys.argv[2]))
"""


def test_two_profiles_into_the_same_file_leave_one_of_them_whole(profiled, tmp_path):
    ledgers = [profiled(), profiled(stack="plain", optimizer="adamw_32bit")]
    sources = [store(ledger, tmp_path / f"{number}.json") for number, ledger in enumerate(ledgers)]
    place = tmp_path / "both.json"
    writers = [subprocess.Popen([sys.executable, "-c", STORES, str(source), str(place)]) for source in sources]
    while any(writer.poll() is None for writer in writers):
        if place.exists():
            assert from_json(place.read_bytes()) in ledgers
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(tmp_path.iterdir()) == sorted([*sources, place])


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_gpu_the_phantom_is_offered(small_job):
    pytest.importorskip("torch")
    with pytest.raises(UnavailableError, match=r"no GPU that CUDA can use.*--phantom|without CUDA"):
        profile(small_job())


def test_weights_that_do_not_fit_are_told_by_name(small_job, a100):
    ledger = profile(small_job(method="full", dtype="fp32"), phantom=a100, memory=335 * 1024**2, steps=2)
    assert (ledger.ended, ledger.peak.moment.phase) == ("out of memory", "load")
    kinds = ledger.by_kind(ledger.peak.moment)
    assert kinds[Kind.WEIGHT_32BIT] > 0
    assert kinds.get(Kind.UNEXPLAINED, 0) == 0
