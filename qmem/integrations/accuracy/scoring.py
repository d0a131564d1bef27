"""One job's estimate against what it measured: a row of the error table.

It owns what is compared; it writes nothing.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from qmem.architecture import describe
from qmem.catalogue import find_gpu, find_model
from qmem.errors import QmemError
from qmem.estimator import estimate
from qmem.estimator.doubt import has_experts
from qmem.integrations.accuracy.grid import Entry, Refused
from qmem.job import Job
from qmem.ledger import Kind, Ledger
from qmem.ledger.comparison import Comparison, compare

Outcome = Literal["scored", "not estimated", "not measured"]


class Row(NamedTuple):
    """What a job's estimate is off by: bytes where it must be exact, else shares of what was measured.

    Attributes:
        state: ``clean``, ``assumed`` or ``tainted``, as the phantom says.
        measured: peak allocated bytes.
        requested: bytes that the requested peak is off by.
        grain: allocated, every allocation rounded to 512 bytes.
        allocated, reserved: with the full replay.
        quick_allocated, quick_reserved: with the quick one.
        loaded, prepared: requested bytes after load and after preparation, off by.
        residents: named tensors that differ at the closing of a phase.
        same_phase: whether both peak in the same phase.
        kinds: bytes that each kind is off by at the peak, where both peak in the same phase.
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
    loaded: int
    prepared: int
    residents: int
    same_phase: bool
    kinds: dict[Kind, int]
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
    gpu = find_gpu(entry.gpu)
    try:
        none, quick, full = (estimate(entry.job, gpu, replay=mode) for mode in ("none", "quick", "full"))
    except QmemError as error:
        return listed._replace(why=f"not estimated: {error.message}")
    compared = compare(full, measured)
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
        loaded=_closing_change(compared, "load"),
        prepared=_closing_change(compared, "prepare"),
        residents=len(compared.owners),
        same_phase=full.peak.moment.phase == measured.peak.moment.phase,
        kinds=_kind_changes(compared),
        paged=full.paged_bytes - measured.paged_bytes,
    )


def _share(estimated: int | None, measured: int | None) -> float:
    assert estimated is not None, "a replay was asked for"
    assert measured, "the phantom counts it"
    return estimated / measured - 1


def _closing_change(compared: Comparison, phase: str) -> int:
    """Bytes that requested is off by when a phase closes; 0 where neither has the phase."""
    for one in compared.phases:
        if (one.step, one.phase) == (0, phase):
            changes = [r.change for r in one.readings if (r.waterline, r.measure) == ("requested", "current")]
            return -next(change for change in changes if isinstance(change, int))
    return 0


def _kind_changes(compared: Comparison) -> dict[Kind, int]:
    if not compared.peak.scored:
        return {}
    return {one.kind: -one.change for one in compared.peak.kinds if isinstance(one.change, int)}


def middle(shares: Iterable[float]) -> float:
    """The median of what is off, without its sign; of an even number the larger of the two in the middle."""
    ordered = sorted(map(abs, shares))
    return ordered[len(ordered) // 2]
