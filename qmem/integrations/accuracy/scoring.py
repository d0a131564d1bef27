"""One job's estimate against what it measured: a row of the error table.

It owns what is compared; it writes nothing.  What only one of the two has is a difference, never left out.
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import structs

from qmem.architecture import describe
from qmem.catalogue import find_gpu, find_model
from qmem.errors import QmemError
from qmem.estimator import estimate
from qmem.estimator.doubt import has_experts
from qmem.integrations.accuracy.grid import CAPACITY, Entry, Refused
from qmem.integrations.accuracy.phases import PhaseError, closing_error, phase_errors
from qmem.job import Job
from qmem.ledger import Kind, Ledger
from qmem.ledger.comparison import Comparison, compare

ASKED = ("model", "parameters", "job", "stack", "versions")
"""What both ledgers must have in common to be held against each other."""

SIMULATED = " (phantom)"
"""What the phantom adds to the name of the card that it stands in for."""


class Row(NamedTuple):
    """What a job's estimate is off by: bytes where it must be exact, else shares of what was measured.

    Attributes:
        state: ``clean``, ``assumed`` or ``tainted``, as the phantom says.
        measured: peak allocated bytes.
        requested: bytes that the requested peak is off by.
        grain: allocated, every allocation rounded to 512 bytes.
        allocated, reserved: with the full replay.
        quick_allocated, quick_reserved: with the quick one.
        loaded, prepared: requested bytes after load and after preparation, off by; absent where one side has no such.
        phases: where requested bytes differ at the closing or at the peak of a phase, or only one side has it.
        residents: named tensors that differ at the closing of a phase.
        same_phase: whether both peak in the same phase of an equal step.
        kinds: bytes that each kind is off by at the peak, where both peak in the same phase; absent where one side
            cannot tell.
        paged: managed bytes, off by.
    """

    name: str
    job: Job
    gpu: str
    state: str
    measured: int
    requested: int
    grain: float
    allocated: float
    reserved: float
    quick_allocated: float
    quick_reserved: float
    loaded: int | None
    prepared: int | None
    phases: tuple[PhaseError, ...]
    residents: int
    same_phase: bool
    kinds: dict[Kind, int | None]
    paged: int

    @property
    def worst(self) -> float:
        """The larger of the two errors of the full replay."""
        return max(abs(self.allocated), abs(self.reserved))

    @property
    def family(self) -> str:
        """The ``model_type`` of the job's model."""
        return str(find_model(self.job.model).config["model_type"])

    @property
    def experts(self) -> bool:
        """Whether the model has experts."""
        return has_experts(describe(find_model(self.job.model).config))


class Listed(NamedTuple):
    """A job that has no row, and why."""

    name: str
    job: Job
    gpu: str
    why: str


def score(entry: Entry, measured: Ledger | Refused | None) -> Row | Listed:
    """Estimate a job three ways and hold it against what was measured."""
    listed = Listed(*entry, why="not run yet")
    if measured is None:
        return listed
    if isinstance(measured, Refused):
        return listed._replace(why=f"not measured: {measured.refused}")
    if measured.ended != "complete":
        return listed._replace(why=f"not measured to the end: {measured.ended}")
    gpu = structs.replace(find_gpu(entry.gpu), total_bytes=CAPACITY)
    try:
        none, quick, full = (estimate(entry.job, gpu, replay=mode) for mode in ("none", "quick", "full"))
    except QmemError as error:
        return listed._replace(why=f"not estimated: {error.message}")
    compared = compare(full, measured)
    others = _asked_otherwise(compared, full, measured)
    if others:
        return listed._replace(why=f"what is stored was measured with another {', '.join(others)}")
    return Row(
        *entry,
        state=measured.state,
        measured=measured.peak.allocated_bytes,
        requested=full.peak.requested_bytes - measured.peak.requested_bytes,
        grain=_share(none.peak.allocated_bytes, measured.peak.allocated_bytes),
        allocated=_share(full.peak.allocated_bytes, measured.peak.allocated_bytes),
        reserved=_share(full.peak.reserved_bytes, measured.peak.reserved_bytes),
        quick_allocated=_share(quick.peak.allocated_bytes, measured.peak.allocated_bytes),
        quick_reserved=_share(quick.peak.reserved_bytes, measured.peak.reserved_bytes),
        loaded=closing_error(full, measured, "load"),
        prepared=closing_error(full, measured, "prepare"),
        phases=phase_errors(full, measured),
        residents=len(compared.owners),
        same_phase=compared.peak.scored,
        kinds=_kind_changes(compared),
        paged=full.paged_bytes - measured.paged_bytes,
    )


def _share(estimated: int | None, measured: int | None) -> float:
    assert estimated is not None, "a replay was asked for"
    assert measured, "the phantom counts it"
    return estimated / measured - 1


def _asked_otherwise(compared: Comparison, full: Ledger, measured: Ledger) -> list[str]:
    """What was asked of the phantom and not of the estimate; a version counts where both name one."""
    names = [
        field.name
        for field in compared.fields
        if field.name.startswith(ASKED) and not (field.name.startswith("versions.") and None in (field.a, field.b))
    ]
    same_card = measured.device.removesuffix(SIMULATED) == full.device
    return names if same_card else ["card", *names]


def _kind_changes(compared: Comparison) -> dict[Kind, int | None]:
    if not compared.peak.scored:
        return {}
    return {one.kind: -one.change if isinstance(one.change, int) else None for one in compared.peak.kinds}


def middle(shares: Iterable[float]) -> float:
    """The median of what is off, without its sign; of an even number the larger of the two in the middle."""
    ordered = sorted(map(abs, shares))
    return ordered[len(ordered) // 2]
