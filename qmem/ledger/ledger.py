"""The ledger: what every instrument returns and every report reads.

It owns the shape of the answer (items, readings, their arithmetic) and knows nothing of how an instrument
came to it.  Bytes are integers; what is not known is absent (``None``), never 0.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from qmem.job import Job
from qmem.ledger.kinds import Kind, Waterline

SCHEMA_VERSION = 1

Phase = Literal[
    "load", "prepare", "forward", "loss", "backward", "optimizer step",
    "rest", "evaluation", "save", "merge", "inference",
]  # fmt: skip
Instrument = Literal["estimate", "phantom profile", "profile"]
Space = Literal["gpu", "managed", "pinned", "host"]
State = Literal["clean", "assumed", "tainted"]
Ended = Literal["complete", "out of memory", "interrupted", "failed"]


class Moment(msgspec.Struct, frozen=True, order=False):
    """A point in the job's life.  ``step`` 0 is before training; ``tick`` counts events and alone orders."""

    step: int
    micro_step: int
    phase: Phase
    tick: int

    def __str__(self) -> str:
        if self.step == 0:
            return self.phase
        micro = f", micro-step {self.micro_step}" if self.micro_step > 1 else ""
        return f"{self.phase} of step {self.step}{micro}"


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A holding of memory, or a series of equal ones.

    Attributes:
        n_bytes: what was requested, all ``count`` tensors together.
        kind: what it is for.
        owner: the tensor's qualified name in the transformers model, for transient memory the module role or
            rule. A series writes the numbers it runs over as a range: ``model.layers.{0..39}.mlp.up_proj.weight``.
        born, dies: the moments of its birth and death; ``dies`` is absent where it lives to the end.
            A transient group stands for what is alive at one high water: it is born there and dies one tick later.
        space, device: where it lies.
        because: the formula with its numbers, or the evidence.
        count: how many tensors of ``n_bytes // count`` bytes each.
    """

    n_bytes: int
    kind: Kind
    owner: str
    born: Moment
    dies: Moment | None = None
    space: Space = "gpu"
    device: int = 0
    because: str = ""
    count: int = 1

    def alive(self, moment: Moment) -> bool:
        """Whether the item holds its memory at ``moment``."""
        return self.born.tick <= moment.tick and (self.dies is None or moment.tick < self.dies.tick)


class Interval(msgspec.Struct, frozen=True):
    """A number with doubt, both ends included."""

    low: int
    high: int


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a counter shows at a moment: ``current`` then, or the ``peak`` of the phase that closes there."""

    moment: Moment
    waterline: Waterline
    measure: Literal["current", "peak"]
    n_bytes: int | Interval
    counter: str


class Doubt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far an estimate may be off: where the measured number lies, if jobs like it were checked, and why."""

    because: str
    allocated_bytes: Interval | None = None
    reserved_bytes: Interval | None = None


class Peak(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fullest moment of the training steps, at each waterline that the instrument can tell.

    ``doubt`` is an estimate's; a measured number has none.
    """

    moment: Moment
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int | None = None
    device_bytes: Interval | None = None
    doubt: Doubt | None = None


class Parameters(msgspec.Struct, frozen=True):
    """How many parameters the model with its adapter has, and how many are trained (as peft prints them)."""

    total: int
    trainable: int


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of an instrument for one job.

    ``paged_bytes`` are the managed bytes of a paged optimizer: outside torch's three waterlines, at *device*
    anything from none to all of them.  ``assumptions`` and ``warnings`` are sentences for the reader.

    What only a run has: ``passport`` says where, when and with what it ran; ``state`` whether a value that was read
    from a simulated device decided a shape; ``ended`` how it ended, for everything after that is missing;
    ``counters`` are numbers of the whole run (bytes unless the name says otherwise).

    ``watched`` says which training run it was where the instrument did not build it; of ``job`` only the model is known
    then, and its other fields say nothing.
    """

    schema_version: int = SCHEMA_VERSION
    instrument: Instrument
    job: Job
    model: str
    device: str
    stack: dict[str, Any]
    versions: dict[str, str]
    parameters: Parameters
    peak: Peak
    paged_bytes: int
    items: tuple[Item, ...]
    readings: tuple[Reading, ...]
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    passport: dict[str, str] = {}
    state: State = "clean"
    ended: Ended = "complete"
    counters: dict[str, int] = {}
    watched: str = ""

    def at(self, moment: Moment, space: Space = "gpu") -> Iterator[Item]:
        """The items of one space that are alive at a moment."""
        return (item for item in self.items if item.space == space and item.alive(moment))

    def by_kind(self, moment: Moment, space: Space = "gpu") -> dict[Kind, int]:
        """Bytes alive at a moment, by kind, in the tree's order (rounding: bytes of the allocator's grain)."""
        total: dict[Kind, int] = {}
        for item in self.at(moment, space):
            total[item.kind] = total.get(item.kind, 0) + item.n_bytes
        return {kind: total[kind] for kind in Kind if kind in total}


def to_json(ledger: Ledger) -> bytes:
    """The ledger as JSON: integer bytes, moments and kinds by name."""
    return msgspec.json.encode(ledger)


def from_json(text: bytes | str) -> Ledger:
    """A stored ledger.

    Raises:
        UsageError: the text is no ledger, is cut short, or has another schema version.
    """
    from qmem.errors import UsageError  # noqa: PLC0415

    try:
        ledger = msgspec.json.decode(text, type=Ledger)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"not a ledger: {error}", hint="make it with qmem estimate --json") from error
    if ledger.schema_version != SCHEMA_VERSION:
        raise UsageError(f"the ledger has schema version {ledger.schema_version}, this qmem reads {SCHEMA_VERSION}")
    return ledger
