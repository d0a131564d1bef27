"""``qmem.TrainerCallback`` with the real Trainer on the phantom, in processes of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_watch import SCRIPTS, Watched, on_phantom, peaks

from qmem.catalogue import find_model
from qmem.ledger import Kind

pytestmark = pytest.mark.libraries

SMALL = {"num_hidden_layers": 2, "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048}
N_BYTES_OF_BASE = (8192 * 512 + 2 * (512 * 2048 * 2 + 2 * 512 * 1024 + 3 * 512 * 2048 + 2 * 512 + 2 * 128) + 512) * 2
"""Two layers of Qwen3-0.6B's shape, cut: 16 heads and 8 of keys and values, of 128 each; the head is the embedding."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Watched]:
    """Runs the Trainer with some words; the same words are not run twice."""
    runs: dict[tuple[str, ...], Watched] = {}

    def run(*words: str) -> Watched:
        if words not in runs:
            folder = tmp_path_factory.mktemp("trainer")
            kept = {name: value for name, value in find_model("Qwen3-0.6B").config.items() if name != "layer_types"}
            (folder / "config.json").write_text(json.dumps({**kept, **SMALL}))
            script, config = str(SCRIPTS / "trainer.py"), str(folder / "config.json")
            runs[words] = Watched(folder, on_phantom(script, str(folder), config, *words))
        return runs[words]

    return run


def test_the_ledger_of_a_trainer_has_its_phases_and_what_lives_on(watched):
    ledger = watched().ledger
    assert (ledger.model, ledger.state, ledger.ended) == ("PeftModelForCausalLM", "clean", "complete")
    assert {"forward of step 2, micro-step 2", "optimizer step of step 5"} <= peaks(ledger).keys()
    kinds = ledger.by_kind(ledger.peak.moment)
    assert kinds[Kind.WEIGHT_16BIT] == N_BYTES_OF_BASE
    assert kinds[Kind.OPTIMIZER_STATE] >= 2 * kinds[Kind.ADAPTER]
    assert {"torch", "transformers", "peft", "accelerate"} <= ledger.versions.keys()


def test_peaks_are_in_the_history_of_the_trainer(watched):
    logged = [entry for entry in watched().said["history"] if "qmem/peak_allocated_bytes" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 5]
    most = max(entry["qmem/peak_allocated_bytes"] for entry in logged)
    assert most == watched().ledger.peak.allocated_bytes


def test_attached_first_it_puts_peaks_into_what_other_callbacks_report(watched):
    assert not any("qmem/peak_reserved_bytes" in logs for logs in watched().said["seen"])
    seen = watched("first", "detail").said["seen"]
    assert all("qmem/peak_reserved_bytes" in logs for logs in seen)
    assert len(seen) == 3


def test_with_detail_the_loss_has_a_phase_and_every_byte_of_the_peak_an_owner(watched):
    ledger = watched("first", "detail").ledger
    assert "loss of step 2" in peaks(ledger)
    kinds = ledger.by_kind(ledger.peak.moment)
    assert kinds[Kind.LOGITS] > 0
    unexplained = [item for item in ledger.at(ledger.peak.moment) if item.kind is Kind.UNEXPLAINED]
    # The running loss, made before the callback is called, and copies of it that the Trainer keeps.
    assert sum(item.n_bytes for item in unexplained) < 64, unexplained


def test_out_of_memory_leaves_a_report_although_the_trainer_calls_nobody(watched):
    run = watched("short")
    ledger, page = run.ledger, Path(run.folder / "run.md").read_text()
    assert ledger.ended == "out of memory"
    assert "the run ended early in the optimizer step of step 2" in " ".join(ledger.warnings)
    assert "model.embed_tokens.weight" in page.replace("\\", "")


def test_a_training_that_an_error_ends_leaves_what_was_seen_with_its_evaluations(watched):
    run = watched("fails")
    assert run.ledger.ended == "failed"
    assert {"optimizer step of step 2", "evaluation of step 2"} <= peaks(run.ledger).keys()
    assert any("qmem/evaluation_peak_allocated_bytes" in entry for entry in run.said["history"])
