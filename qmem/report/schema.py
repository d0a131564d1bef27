"""The JSON Schema of a ledger, from the types themselves."""

from typing import Any

import msgspec

from qmem.ledger import Ledger


def ledger_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every ``--json`` output of a ledger satisfies."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Ledger)}
