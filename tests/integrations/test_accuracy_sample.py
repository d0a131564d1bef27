"""A sample of the grid, measured again: the phantom gives the same bytes, and no error has grown."""

import json
from pathlib import Path

import pytest

from qmem.integrations.accuracy import writing
from qmem.integrations.accuracy.grid import read_grid, read_measured
from qmem.integrations.accuracy.measuring import measure
from qmem.integrations.accuracy.scoring import Row, score
from qmem.phantom import availability

MEASURED = Path(__file__).parents[2] / "reports" / "accuracy" / "measured"
SAMPLE = (
    "004-Qwen3-0.6B", "007-Qwen3-0.6B", "003-Qwen2.5-0.5B", "026-Llama-3.2-1B",
)  # fmt: skip

pytestmark = [
    pytest.mark.libraries,
    pytest.mark.skipif(not availability().can_run, reason="the phantom cannot run here"),
]


@pytest.fixture(scope="module", params=SAMPLE)
def again(request, tmp_path_factory):
    entry = next(entry for entry in read_grid() if entry.name == request.param)
    folder = tmp_path_factory.mktemp("measured")
    measure([entry], folder, workers=1, done=lambda _: None)
    return entry, read_measured(MEASURED, entry.name), read_measured(folder, entry.name)


def test_a_repeated_measurement_gives_the_same_bytes(again):
    _, committed, repeated = again
    assert repeated.peak == committed.peak
    torchs = [[r for r in ledger.readings if r.waterline != "device"] for ledger in (repeated, committed)]
    assert torchs[0] == torchs[1]


def test_no_error_has_grown(again):
    entry, _, repeated = again
    row = score(entry, repeated)
    assert isinstance(row, Row)
    committed = json.loads((MEASURED.parent / "errors.json").read_text())
    assert writing.grown({entry.name: committed[entry.name]}, writing.errors([row])) == {}
