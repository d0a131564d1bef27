"""Record what torch's own allocator does, for the goldens of this folder.

    python record.py random OUT.json.xz --seed 3 --operations 1500 --settings max_split_size_mb:40
    python record.py snapshot SNAPSHOT.pickle OUT.json.xz --job "two steps of ..."

The first runs random requests on the current CUDA device; the second shortens a file of
``torch.cuda.memory._dump_snapshot`` that began with ``_record_memory_history(context=None)`` before the first request.
Give ``--simulated`` where the device is a simulated driver (no kernel runs and no memory is behind the addresses;
the allocator is torch's own).  Addresses are written as if all segments lay end to end in the order of their creation,
that is of their first mapping: take another seed where a range that was reserved for a request that failed is used
only after a later one.
"""

import argparse
import json
import lzma
import pickle
import random
from pathlib import Path

SIZES = (1, 512, 1 << 20, (1 << 20) + 1, 2 << 20, 3 << 20, (10 << 20) - 512, 10 << 20, 20 << 20, 64 << 20)
FREES = ("segment_free", "segment_unmap")


def canonical(trace, device_total):
    """The history as (action, address, bytes, stream), with addresses in the order of creation."""
    places, end, rows = [], 0, []
    for number, entry in enumerate(trace):
        action, address, size = entry["action"], entry.get("addr", 0), entry["size"]
        if action in ("oom", "snapshot"):
            continue
        place = next((place for place in places if place.holds(address)), None)
        if place is None:
            length = size if action == "segment_alloc" else range_bytes(device_total, trace[number + 1]["size"])
            place = Place(address, length, end)
            places.append(place)
            end += length
        rows.append((action, address - place.start + place.canonical, size, entry["stream"]))
        place.mapped += {"segment_alloc": size, "segment_map": size}.get(action, -size if action in FREES else 0)
        if not place.mapped:
            places.remove(place)
    return rows


class Place:
    """A segment, or the address range of an expandable one, until nothing of it is backed by memory."""

    def __init__(self, start, length, canonical):
        self.start, self.end, self.canonical, self.mapped = start, start + length, canonical, 0

    def holds(self, address):
        return self.start <= address < self.end


def range_bytes(device_total, request):
    """Nine eighths of the device in pages of 2 MiB or, where its first request is not small, of 20 MiB."""
    page = (2 if request <= 1 << 20 else 20) << 20
    return -(-(device_total + device_total // 8) // page) * page


def shorten(rows):
    """Events, their sizes, streams and addresses, and the calls to the driver before each event."""
    golden = {"sizes": [], "streams": [], "addresses": [], "events": [], "empties_cache": [], "segments": []}
    live = {}
    for number, (action, address, size, stream) in enumerate(rows):
        if action == "alloc":
            live[address] = len(golden["sizes"])
            golden["events"].append(live[address])
            golden["sizes"].append(size)
            golden["streams"].append(stream)
            golden["addresses"].append(address)
        elif action == "free_completed":
            golden["events"].append(~live.pop(address))
        elif action.startswith("segment"):
            if action in FREES and rows[number - 1][0] not in FREES:
                golden["empties_cache"].append(len(golden["events"]))
            golden["segments"].append([action, address, size])
    return golden


def from_snapshot(path, device_total):
    with path.open("rb") as file:
        snapshot = pickle.load(file)  # noqa: S301  (a file that its user recorded)
    golden = shorten(canonical(snapshot["device_traces"][0], device_total))
    held = [sum(segment[key] for segment in snapshot["segments"]) for key in ("allocated_size", "total_size")]
    return golden | {"failed": [], "readings": [[len(golden["events"]) - 1, *held]]}


def record_random(seed, operations, settings, fraction):
    """Random requests, frees and calls of empty_cache; the counters after each."""
    import torch

    torch._C._accelerator_setAllocatorSettings(settings)
    torch.cuda.init()
    if fraction < 1:
        torch.cuda.set_per_process_memory_fraction(fraction)
    torch.cuda.memory._record_memory_history(context=None, max_entries=10**7)
    streams = [torch.cuda.current_stream(), torch.cuda.Stream()]
    draw, live = random.Random(seed), {}  # noqa: S311  (a repeatable sequence)
    golden = {"sizes": [], "streams": [], "events": [], "empties_cache": [], "failed": [], "readings": []}
    while len(golden["events"]) < operations:
        chance = draw.random()
        if live and chance < 0.48:
            handle = draw.choice(list(live))
            del live[handle]
            golden["events"].append(~handle)
        elif chance < 0.485:
            torch.cuda.empty_cache()
            golden["empties_cache"].append(len(golden["events"]))
            continue
        else:
            _request(torch, draw, streams, live, golden)
        golden["readings"].append([len(golden["events"]) - 1, *_counters(torch)])
    history = torch.cuda.memory._snapshot()["device_traces"][0]
    rows = canonical(history, torch.cuda.get_device_properties(0).total_memory)
    golden["segments"] = [list(row[:3]) for row in rows if row[0].startswith("segment")]
    golden["addresses"] = [row[1] for row in rows if row[0] == "alloc"]
    return golden


def _request(torch, draw, streams, live, golden):
    log2_most = 27 if draw.random() < 0.9 else 30
    size = int(2 ** draw.uniform(4, log2_most)) if draw.random() < 0.7 else draw.choice(SIZES)
    stream = int(draw.random() > 0.85)
    handle = len(golden["sizes"])
    golden["sizes"].append(size)
    golden["streams"].append(stream)
    golden["events"].append(handle)
    try:
        with torch.cuda.stream(streams[stream]):
            live[handle] = torch.empty(size, dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        golden["failed"].append(handle)
        golden["readings"].append([len(golden["events"]) - 1, *_counters(torch)])
        for each in list(live)[::2]:
            del live[each]
            golden["events"].append(~each)


def _counters(torch):
    stats = torch.cuda.memory_stats()
    names = ("allocated_bytes.all.current", "reserved_bytes.all.current", "allocated_bytes.all.peak",
             "reserved_bytes.all.peak", "requested_bytes.all.current", "num_alloc_retries", "num_ooms")  # fmt: skip
    return [stats[name] for name in names]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=("random", "snapshot"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=1500)
    parser.add_argument("--settings", default="")
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--capacity", type=int, help="bytes that cudaMalloc can hand out")
    parser.add_argument("--job", default="random requests")
    parser.add_argument("--simulated", action="store_true")
    options = parser.parse_args()

    import torch

    device = torch.cuda.get_device_properties(0)
    if options.source == "random":
        golden = record_random(options.seed, options.operations, options.settings, options.fraction)
    else:
        golden = from_snapshot(options.paths[0], device.total_memory)
    passport = {
        "job": options.job, "seed": options.seed if options.source == "random" else None, "torch": torch.__version__,
        "device": device.name, "simulated": options.simulated, "settings": options.settings,
        "memory_fraction": options.fraction, "device_total": device.total_memory, "capacity": options.capacity,
    }  # fmt: skip
    text = json.dumps({"passport": passport} | golden, separators=(",", ":")).encode()
    options.paths[-1].write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main()
