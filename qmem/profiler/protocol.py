"""What the worker is asked and what it tells: one JSON line each, through a pipe.

Every event stands by itself, so that whatever happens to the worker, all it has told until then counts.
"""

from typing import Literal, NamedTuple

import msgspec

from qmem.job import Job
from qmem.ledger import Kind, Phase, Space


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to run.

    Attributes:
        job: the job.
        phantom: the id of the GPU to simulate; absent for a real one.
        memory: bytes of the simulated card, where they differ from the catalogue's.
        steps: clean steps.
        weights: a folder with a local checkpoint; absent where weights are made on the device.
        load: send the loading through ``from_pretrained`` of a checkpoint of zeros.
        history: keep the allocator's history from the beginning, to find what held the memory where it ends.
    """

    job: Job
    phantom: str | None = None
    memory: int | None = None
    steps: int = 3
    weights: str | None = None
    load: bool = False
    history: bool = False


class Place(NamedTuple):
    """Where in the job's life the worker is."""

    step: int
    micro_step: int
    phase: Phase


class Holding(NamedTuple):
    """A tensor, or a series of equal ones over the layers.

    ``block_bytes`` is what the allocator handed out for them; absent outside its memory.  ``addresses`` is the sum of
    theirs: another sum says that they are other tensors of the same name.
    """

    owner: str
    kind: Kind
    space: Space
    n_bytes: int
    n_tensors: int
    because: str
    block_bytes: int | None = None
    addresses: int = 0


class Counter(NamedTuple):
    """One of torch's counters at a closing: bytes now, and the most since the closing before."""

    current: int
    peak: int


class Shortage(NamedTuple):
    """Where memory ended: the segment that torch asked the driver for, and what the driver had left, in bytes."""

    asked: int
    free: int


class Block(NamedTuple):
    """A block of the allocator whose tensor has no name."""

    address: int
    n_bytes: int
    block_bytes: int


class Event(msgspec.Struct, kw_only=True, tag=True):
    """Something the worker tells."""


class Started(Event):
    """The libraries are loaded and the device is there; ``passport`` says which, ``pid`` is the worker's process."""

    pid: int
    device: str
    passport: dict[str, str]


class Described(Event):
    """The model with its adapter is there."""

    total: int
    trainable: int


class Entered(Event):
    """A phase begins; for the display."""

    place: Place
    allocated: int
    peak: int


class Closed(Event):
    """A phase is over.

    Attributes:
        place: the phase.
        tick: allocations and frees so far.
        requested, allocated, reserved, active: torch's counters.
        device: bytes by counter, of what sees the whole device.
        resident: managed bytes that lie on the GPU, where the driver can tell.
        totals: counts that only grow: retries, OOMs.
        holdings: the tensors that have a name.
        unnamed: the blocks of the others.
        unfinished: the phase was cut off, by out of memory.
        shortage: what was missing there, where torch itself asked for it.
        looked: holdings and unnamed blocks were looked for; else only counters were read, and both are empty.
    """

    place: Place
    tick: int
    requested: Counter
    allocated: Counter
    reserved: Counter
    active: Counter
    device: dict[str, int]
    totals: dict[str, int]
    holdings: tuple[Holding, ...]
    unnamed: tuple[Block, ...]
    resident: int | None = None
    unfinished: bool = False
    shortage: Shortage | None = None
    looked: bool = True


class Workspaces(Event):
    """Blocks that turned out to be workspaces of cuBLAS, by address."""

    addresses: tuple[int, ...]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was alive at one moment and is not counted by name: at the high water of a phase, or at its closing.

    ``n_bytes`` are all requested bytes then; ``offset`` is the event, counted from the phase's first.
    """

    n_bytes: int
    offset: int
    holdings: tuple[Holding, ...]


class TracedPhase(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of the traced step."""

    place: Place
    n_events: int
    high_water: Seen
    closing: Seen


class Traced(Event):
    """The step after the clean ones with the allocator's history; of a run that ran out of memory, all phases."""

    phases: tuple[TracedPhase, ...]


class Guarded(Event):
    """What the phantom's readback guard says of the run; ``sentences`` are about what taints it."""

    state: Literal["clean", "assumed", "tainted"]
    assumptions: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


class Noted(Event):
    """A sentence for the reader."""

    sentence: str
    is_warning: bool = False


class Failed(Event):
    """The run ended early."""

    why: Literal["out of memory", "unavailable", "unsupported", "error"]
    message: str
    hint: str = ""


class Finished(Event):
    """All was run; ``host`` are bytes by counter."""

    host: dict[str, int]


AnyEvent = (
    Started | Described | Entered | Closed | Workspaces | Traced | Guarded | Noted | Failed | Finished
)  # fmt: skip

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)


def encode(event: Event) -> bytes:
    """The event as a line."""
    return _encoder.encode(event) + b"\n"


def decode(line: bytes) -> AnyEvent:
    """The event of a line."""
    event: AnyEvent = _decoder.decode(line)
    return event


def encode_request(request: Request) -> bytes:
    """The request as the worker reads it."""
    return _encoder.encode(request)
