"""A project that trains a model of the shape of Qwen2-1.5B on the phantom: each one-line change is found and named.

The bytes that a hand can count are counted by hand; a baseline is made once and shared.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from qmem.phantom import availability

pytestmark = pytest.mark.libraries

DEMO = Path(__file__).with_name("demo")
MIB = 1024**2
LAYERS, HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 4, 1536, 8960, 256, 151_936
HEADS = 12
BATCH, SEQUENCE = 2, 1024
TOKENS = BATCH * SEQUENCE
RANK = 8
CHUNK = 256
"""Tokens whose logits the fused loss has at once."""

LINEARS = (
    (HIDDEN, HIDDEN), (HIDDEN, KEYS), (HIDDEN, KEYS), (HIDDEN, HIDDEN),
    (HIDDEN, INTERMEDIATE), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN),
)  # fmt: skip
"""Inputs and outputs of a layer's seven linears."""

ENDS = [end for linear in LINEARS for end in linear]
"""Each adapter has a matrix of rank × inputs, and one of outputs × rank."""

PAGED_FROM = 100_000
"""Elements from which bitsandbytes pages an optimizer's state."""

OLDER = "0.49.2"
"""Of bitsandbytes, one minor version before the one that the tests run with."""

CHANGES = {
    "nothing": ("train", "", ""),
    "nothing again": ("wide", "", ""),
    "checkpointing lost": ("train", "CHECKPOINTING = True", "CHECKPOINTING = False"),
    "head cast to fp32": ("train", "bfloat16", "float32"),
    "rank 8 to 64": ("train", "RANK = 8", "RANK = 64"),
    "fused loss removed": ("train", "FUSED_LOSS = True", "FUSED_LOSS = False"),
    "optimizer unpaged": ("wide", "PAGED_OPTIMIZER = True", "PAGED_OPTIMIZER = False"),
    "a tensor kept per step": ("train", "KEEP_HISTORY = False", "KEEP_HISTORY = True"),
    "an older library": ("short", "", ""),
}
"""The scenario that is checked, and the line of the settings that is another one."""


def qmem(folder: Path, *words: str, libraries: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    if libraries is not None:
        environment["PYTHONPATH"] = str(libraries)
    command = [sys.executable, "-m", "qmem", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )  # fmt: skip


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A folder with the older bitsandbytes for ``PYTHONPATH``; absent where no package index can be reached."""
    folder = tmp_path_factory.mktemp("older")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*install, f"bitsandbytes=={OLDER}"], capture_output=True, text=True, check=False)
    unreachable = "from versions: none" in done.stderr
    assert unreachable or done.returncode == 0, done.stderr
    yield None if unreachable else folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def checks(
    tmp_path_factory: pytest.TempPathFactory, older: Path | None
) -> "dict[str, Future[tuple[int, dict[str, Any]]]]":
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
        libraries = older if name == "an older library" else None
        done = qmem(folder, "check", scenario, "--json", "--write", "github=commands", libraries=libraries)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["verdicts"][0]

    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(check, name) for name in CHANGES if older or name != "an older library"}


@pytest.fixture
def found(checks: "dict[str, Future[tuple[int, dict[str, Any]]]]") -> Callable[[str], dict[str, Any]]:
    """The verdict on a change, which must have failed."""

    def verdict(name: str, *changed: str) -> dict[str, Any]:
        code, verdict = checks[name].result()
        assert (code, verdict["outcome"], verdict["changed"]) == (1, "grown", list(changed))
        assert verdict["simulated"]
        for one in verdict["findings"]:
            if (one["what"], one["held_in"]) == ("peak allocated", one["phase"]):
                assert sum(one["kinds"].values()) == grown_by(one)
        return verdict

    return verdict


def finding(verdict: dict[str, Any], phase: str, what: str = "peak allocated") -> dict[str, Any]:
    return next(one for one in verdict["findings"] if (one["phase"], one["what"]) == (phase, what))


def asked(finding: dict[str, Any]) -> dict[str, int]:
    """What tensors ask for, without what the allocator adds: no hand can count that."""
    return {kind: change for kind, change in finding["kinds"].items() if kind != "rounding"}


def grown_by(finding: dict[str, Any]) -> int:
    return finding["now"] - finding["baseline"]


def owners(finding: dict[str, Any]) -> dict[str, int]:
    return {cause["owner"]: cause["now"] - cause["baseline"] for cause in finding["causes"]}


@pytest.mark.parametrize("name", ["nothing", "nothing again"])
def test_the_unchanged_project_passes_to_the_byte(checks, name):
    code, verdict = checks[name].result()
    assert (code, verdict["outcome"]) == (0, "unchanged")


def test_lost_checkpointing_is_intermediates_of_every_layer_from_the_forward_on(found):
    """Before the backward of the last layer all of them have what autograd saved; a checkpoint had their inputs."""
    verdict = found("checkpointing lost")
    worst = verdict["findings"][0]
    assert worst["phase"] == "step 3 backward"
    # Of each adapted linear its input in fp32, which peft makes for the adapter, and lora_A's output.
    adapted = sum(4 * inputs + 4 * RANK for inputs, _ in LINEARS)
    # Of each norm its input in fp32 and the reciprocal root of its variance.
    norms = 2 * (4 * HIDDEN + 4)
    # Of the attention query, key, value and output, and a logarithm for each head.
    attention = 2 * (HIDDEN + KEYS + KEYS + HIDDEN) + 4 * HEADS
    # Of the MLP the gate, its activation, and up.
    mlp = 3 * 2 * INTERMEDIATE
    random_state = 16 + 8
    saved = LAYERS * (TOKENS * (adapted + norms + attention + mlp) + random_state)
    # The inputs of all layers but the first, which is the embedding's output, and the positions, an argument of each.
    inputs, positions = (LAYERS - 1) * TOKENS * HIDDEN * 2, SEQUENCE * 8
    assert asked(worst) == {"intermediate": saved - positions, "checkpoint": -inputs}
    assert owners(worst).items() >= {
        "mlp.down_proj": LAYERS * TOKENS * (4 * INTERMEDIATE + 4 * RANK),
        "mlp.gate_proj": LAYERS * TOKENS * (4 * HIDDEN + 4 * RANK + 2 * INTERMEDIATE),
    }.items()  # fmt: skip
    assert finding(verdict, "step 3 forward")["kinds"]["intermediate"] > saved // 2


def test_a_head_in_fp32_is_one_weight_of_twice_the_bytes(found):
    at_load = finding(found("head cast to fp32"), "load")
    was = VOCABULARY * HIDDEN * 2
    assert asked(at_load) == {"fp32 weight": 2 * was, "16-bit weight": -was}
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
    assert asked(at_step) == {"adapter": adapters, "gradient": adapters, "optimizer state": states}
    assert grown_by(finding(verdict, "paged", "paged bytes")) == sum(paged) * 8 * LAYERS
    assert {cause["kind"] for cause in at_step["causes"]} == {"adapter"}


def test_a_lost_fused_loss_is_the_logits_of_all_tokens(found):
    verdict = found("fused loss removed")
    worst = verdict["findings"][0]
    assert worst["phase"] == "step 3 backward"
    # At the peak: log-softmax, the loss's gradient and the log-softmax's, all fp32; a chunk of tokens had as many.
    logits = 3 * 4 * VOCABULARY * (TOKENS - CHUNK)
    # The fused loss cuts the last token of each row off, which copies hidden states and labels, and at its peak it
    # has the gradients of all chunks but one.
    scored = BATCH * (SEQUENCE - 1)
    copies = scored * (2 * HIDDEN + 8) + (scored - CHUNK) * 2 * HIDDEN
    assert asked(worst) == {"logits and loss": logits - copies}
    assert all(finding["phase"].endswith(("loss", "backward")) for finding in verdict["findings"])


def test_an_unpaged_optimizer_is_its_state_on_the_gpu(found):
    verdict = found("optimizer unpaged")
    state = sum(16 * end for end in ENDS if 16 * end >= PAGED_FROM) * 8 * LAYERS
    in_forward = finding(verdict, "step 3 forward")
    assert asked(in_forward) == {"optimizer state": state}
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
    assert worst["kinds"] == {"kept tensor": 2 * MIB}
    assert owners(worst) == {f"kept from step to step: allocation at train.py:{line}": 2 * MIB}


def test_an_older_library_is_named_first_with_the_weight_that_it_dequantizes(found, older, tmp_path_factory):
    """From 0.50 on bitsandbytes multiplies few tokens with the packed weight in one kernel, ``gemm_4bit``.

    0.49 makes a 16-bit weight of it in every forward (``MatMul4Bit``); backward does in both.  So the forward alone is
    fullest elsewhere: at the dequantized weight, no more at what the adapter of a linear beside it adds.
    """
    if older is None:
        pytest.skip(f"no package index has bitsandbytes {OLDER}")
    change = f"bitsandbytes {version('bitsandbytes')} -> {OLDER}"
    verdict = found("an older library", change)
    assert {one["phase"] for one in verdict["findings"]} == {f"step {step} forward" for step in (1, 2, 3)}
    worst = verdict["findings"][0]
    # The weight in bf16, and in fp32 the absmax of its blocks of 64, which are quantized themselves.
    dequantized = HIDDEN * INTERMEDIATE * 2 + HIDDEN * INTERMEDIATE // 64 * 4
    # 16 tokens: the linear's output, its input in fp32, the adapter's output in fp32, and that times its scale.
    adapter = 2 * 8 * (INTERMEDIATE * 2 + HIDDEN * 4 + 2 * INTERMEDIATE * 4)
    assert worst["kinds"] == {"dequantized weight": dequantized, "intermediate": -adapter}
    assert owners(worst) == {"mlp.up_proj": dequantized}
    said = (tmp_path_factory.getbasetemp() / "demonstration0" / "an-older-library" / "commands").read_text()
    assert f"::grown%0Achanged: {change}%0Apeak allocated in step 3 forward grew by 25.61 MiB" in said
