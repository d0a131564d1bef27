"""A project that trains a model of the shape of Qwen2-1.5B on the phantom: each one-line change is found and named.

The bytes that a hand can count are counted by hand; a baseline is made once and shared.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qmem.phantom import availability

pytestmark = pytest.mark.libraries

DEMO = Path(__file__).with_name("demo")
MIB = 1024**2
LAYERS, HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 4, 1536, 8960, 256, 151_936
TOKENS = 2 * 1024
LINEARS = (
    (HIDDEN, HIDDEN), (HIDDEN, KEYS), (HIDDEN, KEYS), (HIDDEN, HIDDEN),
    (HIDDEN, INTERMEDIATE), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN),
)  # fmt: skip
"""Inputs and outputs of a layer's seven linears."""

ENDS = [end for linear in LINEARS for end in linear]
"""Each adapter has a matrix of rank × inputs, and one of outputs × rank."""

PAGED_FROM = 100_000
"""Elements from which bitsandbytes pages an optimizer's state."""

CHANGES = {
    "nothing": ("train", "", ""),
    "nothing again": ("wide", "", ""),
    "checkpointing lost": ("train", "CHECKPOINTING = True", "CHECKPOINTING = False"),
    "head cast to fp32": ("train", "bfloat16", "float32"),
    "rank 8 to 64": ("train", "RANK = 8", "RANK = 64"),
    "fused loss removed": ("train", "FUSED_LOSS = True", "FUSED_LOSS = False"),
    "optimizer unpaged": ("wide", "PAGED_OPTIMIZER = True", "PAGED_OPTIMIZER = False"),
    "a tensor kept per step": ("train", "KEEP_HISTORY = False", "KEEP_HISTORY = True"),
}
"""The scenario that is checked, and the line of the settings that is another one."""


def qmem(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "qmem", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )  # fmt: skip


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Future[tuple[int, dict[str, Any]]]]":
    """What ``qmem check`` says after each change, two at a time."""
    if not availability().can_run:
        pytest.skip(availability().why)
    project = tmp_path_factory.mktemp("demonstration") / "project"
    shutil.copytree(DEMO, project)
    done = qmem(project, "baseline", "update", "--reason", "the first")
    assert done.returncode == 0, done.stderr

    def check(name: str) -> tuple[int, dict[str, Any]]:
        scenario, line, changed = CHANGES[name]
        folder = project.with_name(name.replace(" ", "-"))
        shutil.copytree(project, folder)
        settings = folder / "settings.py"
        assert line in settings.read_text()
        settings.write_text(settings.read_text().replace(line, changed))
        done = qmem(folder, "check", scenario, "--json")
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["verdicts"][0]

    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(check, name) for name in CHANGES}


@pytest.fixture
def found(checks: "dict[str, Future[tuple[int, dict[str, Any]]]]") -> Callable[[str], dict[str, Any]]:
    """The verdict on a change, which must have failed."""

    def verdict(name: str) -> dict[str, Any]:
        code, verdict = checks[name].result()
        assert (code, verdict["outcome"], verdict["changed"]) == (1, "grown", [])
        assert verdict["simulated"]
        return verdict

    return verdict


def finding(verdict: dict[str, Any], phase: str, what: str = "peak allocated") -> dict[str, Any]:
    return next(one for one in verdict["findings"] if (one["phase"], one["what"]) == (phase, what))


def grown_by(finding: dict[str, Any]) -> int:
    return finding["now"] - finding["baseline"]


def owners(finding: dict[str, Any]) -> dict[str, int]:
    return {cause["owner"]: cause["now"] - cause["baseline"] for cause in finding["causes"]}


@pytest.mark.parametrize("name", ["nothing", "nothing again"])
def test_the_unchanged_project_passes_to_the_byte(checks, name):
    code, verdict = checks[name].result()
    assert (code, verdict["outcome"]) == (0, "unchanged")


def test_lost_checkpointing_is_intermediates_of_every_layer_from_the_forward_on(found):
    worst = finding(found("checkpointing lost"), "step 3 backward")
    assert max(worst["kinds"], key=worst["kinds"].__getitem__) == "intermediate"
    # What a step keeps of an MLP beside all else: gate, act(gate) × up, and up, tokens × 8960 × 2 B in each layer.
    at_least = 3 * LAYERS * TOKENS * INTERMEDIATE * 2
    assert worst["kinds"]["intermediate"] > at_least
    assert {cause["kind"] for cause in worst["causes"]} == {"intermediate"}
    assert all(owner.startswith("mlp") for owner in owners(worst))


def test_a_head_in_fp32_is_one_weight_of_twice_the_bytes(found):
    at_load = finding(found("head cast to fp32"), "load")
    was = VOCABULARY * HIDDEN * 2
    assert at_load["kinds"] == {"fp32 weight": 2 * was, "16-bit weight": -was}
    assert owners(at_load) == {"model.embed_tokens.weight": 2 * was}
    in_step = finding(found("head cast to fp32"), "step 3 forward")
    assert in_step["kinds"]["fp32 weight"] == 2 * was


def test_a_higher_rank_is_adapters_gradients_and_states_of_that_rank(found):
    verdict = found("rank 8 to 64")
    at_step = finding(verdict, "step 3 optimizer step")
    adapters = sum(ENDS) * (64 - 8) * 4 * LAYERS
    paged = [64 * end for end in ENDS if 64 * end >= PAGED_FROM]
    on_gpu = [64 * end for end in ENDS if 64 * end < PAGED_FROM]
    states = (sum(on_gpu) - 8 * sum(ENDS)) * 8 * LAYERS
    assert at_step["kinds"] == {"adapter": adapters, "gradient": adapters, "optimizer state": states}
    assert grown_by(finding(verdict, "paged", "paged bytes")) == sum(paged) * 8 * LAYERS
    assert {cause["kind"] for cause in at_step["causes"]} == {"adapter"}


def test_a_lost_fused_loss_is_the_logits_of_all_tokens(found):
    verdict = found("fused loss removed")
    worst = verdict["findings"][0]
    assert worst["phase"].endswith("backward")
    # At the peak: log-softmax, the loss's gradient and the log-softmax's, all fp32; a chunk of 256 tokens had as many.
    logits = VOCABULARY * (TOKENS - 256)
    assert set(worst["kinds"]) == {"logits and loss"}
    assert worst["kinds"]["logits and loss"] == pytest.approx(logits * 3 * 4, rel=0.005)
    assert all(finding["phase"].endswith(("loss", "backward")) for finding in verdict["findings"])


def test_an_unpaged_optimizer_is_its_state_on_the_gpu(found):
    verdict = found("optimizer unpaged")
    state = sum(16 * end for end in ENDS if 16 * end >= PAGED_FROM) * 8 * LAYERS
    in_forward = finding(verdict, "step 3 forward")
    assert in_forward["kinds"] == {"optimizer state": state}
    assert grown_by(in_forward) == state
    assert all(".mlp." in owner for owner in owners(in_forward))


def test_a_tensor_kept_per_step_is_named_by_its_line_and_grows_with_the_steps(found):
    verdict = found("a tensor kept per step")
    line = 1 + (DEMO / "train.py").read_text().splitlines().index(
        '            history.append(torch.empty(1024, 1024, dtype=torch.uint8, device="cuda"))'
    )
    for step in (2, 3):
        in_forward = finding(verdict, f"step {step} forward")
        assert grown_by(in_forward) == (step - 1) * MIB
    worst = verdict["findings"][0]
    assert worst["phase"].startswith("step 3")
    assert worst["kinds"] == {"unexplained": 2 * MIB}
    assert owners(worst) == {f"kept from step to step: allocation at train.py:{line}": 2 * MIB}
