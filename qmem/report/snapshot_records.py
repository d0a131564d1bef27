"""A snapshot's answer for programs: one JSON object, or flat records of holders and segments."""

import msgspec

from qmem.ledger import SCHEMA_VERSION
from qmem.report.records import Record
from qmem.snapshot.answer import Answer

SNAPSHOT_COLUMNS = (
    "record", "device", "when", "event", "where", "count", "n_bytes", "address", "segment_bytes", "stream", "small",
    "expandable", "allocated_bytes", "free_bytes", "largest_free_bytes", "reserved_bytes",
)  # fmt: skip


def snapshot_json(answer: Answer) -> bytes:
    """Everything, in integer bytes."""
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, **msgspec.to_builtins(answer)})


def snapshot_records(answer: Answer) -> list[Record]:
    """Moments, holders and segments that are partly free; a column that means nothing is left out."""
    on = {"device": answer.device}
    records: list[Record] = []
    for moment in answer.moments:
        at = {"when": moment.when, "event": moment.event}
        figures = {"allocated_bytes": moment.allocated_bytes, "reserved_bytes": moment.reserved_bytes}
        records.append({"record": "moment", **on, **at, "n_bytes": moment.requested_bytes, **figures})
        records += [
            {"record": "holder", **on, **at, "where": holder.where, "count": use.count, "n_bytes": use.n_bytes}
            for holder in answer.holders
            if (use := holder.uses.get(moment.when))
        ]
    for segment in answer.fragmentation.segments:
        found = msgspec.structs.asdict(segment)
        where, count, size = found.pop("kept_by"), found.pop("n_held"), found.pop("n_bytes")
        named = {"where": where, "count": count, "segment_bytes": size}
        records.append({"record": "segment", **on, "when": answer.fragmentation.when, **named, **found})
    return records
