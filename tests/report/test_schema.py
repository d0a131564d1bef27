"""The JSON of a ledger and its schema."""

import json

import pytest

from qmem.ledger import from_json, to_json
from qmem.report.schema import ledger_schema


def test_a_ledger_round_trips_through_json(ledger):
    assert from_json(to_json(ledger)) == ledger


def test_json_carries_what_scripts_rely_on(ledger):
    stored = json.loads(to_json(ledger))
    assert stored["schema_version"] == 1
    assert stored["instrument"] == "estimate"
    assert stored["job"]["model"] == "Qwen/Qwen3-14B"
    assert stored["parameters"] == {"total": 14_800_419_840, "trainable": 32_112_640}
    assert stored["peak"]["allocated_bytes"] == ledger.peak.allocated_bytes
    assert stored["peak"]["reserved_bytes"] == ledger.peak.reserved_bytes
    assert stored["peak"]["moment"]["phase"] == "loss"
    assert stored["paged_bytes"] == ledger.paged_bytes
    assert len(stored["items"]) == len(ledger.items)
    assert stored["readings"] == []


def test_the_schema_describes_every_field_that_is_written(ledger):
    schema = ledger_schema()
    definition = schema["$defs"]["Ledger"]
    assert set(json.loads(to_json(ledger))) <= set(definition["properties"])
    assert {"job", "instrument", "parameters", "peak", "items", "readings"} <= set(definition["required"])


def test_json_output_satisfies_the_schema_by_an_independent_validator(ledger):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(ledger_schema())
    stored = json.loads(to_json(ledger))
    validator.validate(stored)
    stored["peak"]["allocated_bytes"] = "many"
    with pytest.raises(jsonschema.ValidationError, match="many"):
        validator.validate(stored)
