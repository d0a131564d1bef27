"""Markdown, CSV and JSON of a stored ledger and of a comparison: the same numbers, in bytes."""

import csv
import io
import json
import sys

import msgspec
import pytest

from qmem.errors import UnavailableError
from qmem.ledger import Interval, Moment, Reading, compare
from qmem.report.markdown import ledger_markdown
from qmem.report.records import comparison_json, comparison_records, ledger_records
from qmem.report.table_export import comparison_csv, ledger_csv

LOSS_2 = Moment(2, 1, "loss", 1_500)
DOUBTFUL = Reading(moment=LOSS_2, waterline="device", measure="peak", n_bytes=Interval(7, 9), counter="nvml")


@pytest.fixture
def measured(ledger):
    sure = Reading(moment=LOSS_2, waterline="allocated", measure="peak", n_bytes=2**40 + 1, counter="torch")
    return msgspec.structs.replace(ledger, readings=(sure, DOUBTFUL))


@pytest.fixture
def grown(measured):
    return msgspec.structs.replace(measured, paged_bytes=measured.paged_bytes + 1, readings=measured.readings[:1])


def test_markdown_of_a_ledger_shows_its_instrument_peak_paged_bytes_and_phases(measured):
    text = ledger_markdown(measured)
    assert "estimate, a walk on paper" in text
    assert f"{measured.peak.allocated_bytes / 2**30:.3f}" in text
    assert f"{measured.paged_bytes:,} bytes" in text
    assert "| loss | at most | 1024.000 | \\<0.001 to \\<0.001 |" in text


def test_every_item_and_reading_is_a_record(measured):
    records = ledger_records(measured)
    assert sum(record["n_bytes"] for record in records if record["record"] == "item") == sum(
        item.n_bytes for item in measured.items
    )
    assert records[-1] == {
        "record": "reading", "step": 2, "micro_step": 1, "phase": "loss", "tick": LOSS_2.tick, "waterline": "device",
        "measure": "peak", "counter": "nvml", "n_bytes": 7, "n_bytes_high": 9,
    }  # fmt: skip


def test_csv_keeps_whole_bytes_whole_and_leaves_unknown_cells_empty(measured):
    pytest.importorskip("pandas")
    rows = list(csv.DictReader(io.StringIO(ledger_csv(measured))))
    assert len(rows) == len(measured.items) + len(measured.readings)
    assert rows[-2]["n_bytes"] == str(2**40 + 1)
    assert (rows[-2]["n_bytes_high"], rows[-2]["owner"]) == ("", "")
    assert [row["n_bytes"] for row in rows[: len(measured.items)]] == [str(item.n_bytes) for item in measured.items]


def test_csv_of_a_comparison_has_every_record(measured, grown):
    pytest.importorskip("pandas")
    rows = list(csv.DictReader(io.StringIO(comparison_csv(measured, grown))))
    assert len(rows) == len(comparison_records(compare(measured, grown)))
    paged = rows[-1]
    assert (paged["record"], paged["difference_bytes"]) == ("paged", "1")
    assert (paged["a_bytes"], paged["b_bytes"]) == (str(measured.paged_bytes), str(grown.paged_bytes))


def test_csv_without_pandas_says_how_to_get_it(measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnavailableError, match=r"CSV needs pandas.*pip install \"qmem-planner\[table\]\""):
        ledger_csv(measured)


def test_json_of_a_comparison_carries_both_passports_and_integer_bytes(measured, grown):
    stored = json.loads(comparison_json(measured, msgspec.structs.replace(grown, instrument="phantom profile")))
    assert stored["schema_version"] == 1
    assert (stored["a"]["simulated"], stored["b"]["simulated"]) == (False, True)
    assert stored["equal"] is False
    assert {"name": "instrument", "a": "estimate", "b": "phantom profile"} in stored["fields"]
    bytes_of = [value for record in stored["differences"] for name, value in record.items() if "bytes" in name]
    assert bytes_of
    assert all(isinstance(value, int) for value in bytes_of)
    device = [r for r in stored["differences"] if r["record"] == "phase" and r.get("waterline") == "device"]
    assert device[0]["a_bytes_high"] == 9
    assert "b_bytes" not in device[0]
