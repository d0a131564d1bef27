"""Small models, and a phantom GPU to run them on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qmem.catalogue import Gpu, find_gpu, find_model
from qmem.job import Job, make_job
from qmem.ledger import Ledger
from qmem.phantom import availability
from qmem.profiler import profile

SMALL = {"num_hidden_layers": 2, "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048}


@pytest.fixture(scope="session")
def a100() -> Gpu:
    return find_gpu("a100-80")


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the folder of a model of the catalogue with some fields changed."""

    def write(config: Mapping[str, Any], **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"small-{config['model_type']}"
        folder.mkdir()
        kept = {name: value for name, value in config.items() if name != "layer_types"}
        (folder / "config.json").write_text(json.dumps({**kept, **changes}))
        return folder

    return write


@pytest.fixture(scope="session")
def small_model(write_model: Callable[..., Path]) -> Path:
    """The folder of a two-layer Qwen3."""
    return write_model(find_model("Qwen3-0.6B").config, **SMALL)


@pytest.fixture(scope="session")
def small_job(small_model: Path) -> Callable[..., Job]:
    """A job of the small model; rank 64 gives adapters on both sides of bitsandbytes' 100,000 elements."""

    def make(**fields: Any) -> Job:
        return make_job({"model": str(small_model), "rank": 64, "seq": 256, **fields})

    return make


@pytest.fixture(scope="session")
def phantom() -> None:
    """Skips where the phantom cannot run."""
    pytest.importorskip("torch")
    available = availability()
    if not available.can_run:
        pytest.skip(available.why)


@pytest.fixture(scope="session")
def profiled(small_job: Callable[..., Job], a100: Gpu) -> Callable[..., Ledger]:
    """Profiles the small job with some fields changed; a job that was profiled before is not run again."""
    ledgers: dict[str, Ledger] = {}

    def run(**fields: Any) -> Ledger:
        key = repr(sorted(fields.items()))
        if key not in ledgers:
            ledgers[key] = profile(small_job(**fields), phantom=a100, steps=2)
        return ledgers[key]

    return run
