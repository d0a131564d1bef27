"""The load phase through ``from_pretrained``: of zeros that take no disk, and of a local checkpoint."""

import json

import pytest

from qmem.catalogue import find_model
from qmem.ledger import Ledger
from qmem.profiler import profile

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]


def weights(ledger: Ledger) -> dict[str, int]:
    closing = next(r.moment for r in ledger.readings if r.moment.phase == "load" and r.measure == "current")
    return {item.owner: item.n_bytes for item in ledger.at(closing) if item.kind.waterline == "requested"}


def peak_of_load(ledger: Ledger) -> int:
    return next(
        reading.n_bytes
        for reading in ledger.readings
        if (reading.moment.phase, reading.waterline, reading.measure) == ("load", "requested", "peak")
    )


def test_a_load_of_zeros_ends_with_the_same_tensors_and_has_the_librarys_own_peak(profiled, small_job, a100):
    built, loaded = profiled(), profile(small_job(), phantom=a100, steps=2, load=True)
    assert weights(loaded) == weights(built)
    assert peak_of_load(loaded) != peak_of_load(built)
    assert loaded.ended == "complete"


def test_a_checkpoint_of_zeros_takes_no_disk_and_is_read_back(small_job, small_model, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    from qmem.profiler.checkpoint import write_zeros

    config = find_model(str(small_model)).config
    write_zeros(tmp_path, small_job(), config)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    (shard,) = tmp_path.glob("*.safetensors")
    assert shard.stat().st_blocks * 512 < 100_000 < shard.stat().st_size
    with safetensors.safe_open(shard, framework="pt") as opened:
        assert set(opened.keys()) == set(index["weight_map"])
        assert opened.get_slice("model.embed_tokens.weight").get_shape() == [8192, 512]


def test_a_local_checkpoint_is_loaded(profiled, small_job, small_model, a100, tmp_path):
    from qmem.profiler.checkpoint import write_zeros

    write_zeros(tmp_path, small_job(), find_model(str(small_model)).config)
    loaded = profile(small_job(), phantom=a100, steps=2, weights=tmp_path)
    assert weights(loaded) == weights(profiled())
    assert not any("made up" in sentence for sentence in loaded.assumptions)
