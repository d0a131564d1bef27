"""Whether a job fits a GPU: the ledger's peak, what lies outside the allocator, and the card's capacity.

It owns the comparison and the words for it, and knows nothing of how the ledger came about.
"""

from typing import Literal

import msgspec

from qmem.catalogue.gpus import Gpu
from qmem.errors import UnsupportedError, UsageError
from qmem.ledger import Interval, Ledger, Peak
from qmem.units import format_gib

Outcome = Literal["fits", "tight", "does not fit"]
Doubt = Literal["by paging", "context unsure", "cache given back"]
"""What a tight job hangs on: pages that stay on the host, the context's size, or the allocator's cache."""


class Part(msgspec.Struct, frozen=True):
    """One thing the card must hold, and where the number comes from."""

    name: str
    n_bytes: Interval
    because: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for one card.

    Attributes:
        card: the card's name.
        capacity_bytes: what its driver reports as total memory.
        capacity_unsure: whether that is a sibling card's figure.
        parts: what must be held; the safety margin is one of them only where it was asked for.
        floor_bytes: what the job cannot do without: allocated, the smallest context, and the margin.
        lower_bound: whether the reserved peak is not known, so that ``need`` counts the allocated one instead.
        outcome: ``fits`` where the high end of ``need`` does, ``does not fit`` where even ``floor_bytes`` does not,
            ``tight`` between.
        because: the outcome's reason, with its numbers, as one sentence.
        doubt: what a tight job hangs on; absent for the others.
    """

    card: str
    capacity_bytes: int
    capacity_unsure: bool = False
    parts: tuple[Part, ...]
    floor_bytes: int
    lower_bound: bool
    outcome: Outcome
    because: str
    doubt: Doubt | None = None

    @property
    def need(self) -> Interval:
        """The parts together, in bytes at the waterline *device*."""
        return _sum(self.parts)

    @property
    def headroom(self) -> Interval:
        """Capacity less need, in bytes; negative where the need is above the capacity."""
        return Interval(self.capacity_bytes - self.need.high, self.capacity_bytes - self.need.low)


def verdict(ledger: Ledger, gpu: Gpu, margin_bytes: int = 0) -> Verdict:
    """Whether the ledger's peak fits a card, with ``margin_bytes`` kept free.

    The need is reserved + CUDA context + paged bytes, of which anything from none to all may be resident.  When
    the card is full the allocator gives its unused segments back and tries again (torch 2.14,
    ``c10/cuda/CUDACachingAllocator.cpp``, ``release_cached_blocks``), so a job is refused only where even its
    allocated bytes do not fit.

    Raises:
        UnsupportedError: qmem does not model the card.
        UsageError: the margin is negative.
    """
    context = _context(gpu)
    if margin_bytes < 0:
        raise UsageError(f"the safety margin is {margin_bytes} B, but must be at least 0")
    parts = (_held(ledger.peak), context, *_paged(ledger.paged_bytes), *_margin(margin_bytes))
    floor_bytes = ledger.peak.allocated_bytes + context.n_bytes.low + margin_bytes
    outcome, doubt, because = _judge(_sum(parts), floor_bytes, gpu.total_bytes, ledger.paged_bytes)
    return Verdict(
        card=gpu.name,
        capacity_bytes=gpu.total_bytes,
        capacity_unsure="total_bytes" in gpu.unsure_fields,
        parts=parts,
        floor_bytes=floor_bytes,
        lower_bound=ledger.peak.reserved_bytes is None,
        outcome=outcome,
        because=because,
        doubt=doubt,
    )


def _held(peak: Peak) -> Part:
    """What torch's allocator holds, or hands out where its cache is not known."""
    if peak.reserved_bytes is not None:
        return Part("reserved", _exactly(peak.reserved_bytes), "the allocator's segments at the peak")
    because = "a lower bound: what the allocator holds beyond it is not known"
    return Part("allocated", _exactly(peak.allocated_bytes), because)


def _context(gpu: Gpu) -> Part:
    prior = gpu.context_prior
    if gpu.not_modelled or prior is None:
        raise UnsupportedError(
            f"{gpu.name} cannot be judged: {gpu.not_modelled or 'the size of its context is not known'}",
            hint="qmem gpus lists the cards that can",
        )
    return Part("CUDA context", prior.n_bytes, "a prior, not measured on this card")


def _paged(paged_bytes: int) -> tuple[Part, ...]:
    part = Part(
        "paged optimizer state", Interval(0, paged_bytes), "managed memory: from nothing to all of it on the GPU"
    )
    return (part,) if paged_bytes else ()


def _margin(margin_bytes: int) -> tuple[Part, ...]:
    return (Part("safety margin", _exactly(margin_bytes), "kept free, as asked"),) if margin_bytes else ()


def _judge(need: Interval, floor: int, capacity: int, paged: int) -> tuple[Outcome, Doubt | None, str]:
    """The outcome, what it hangs on, and its reason.  Each branch is tried only when the easier one does not hold."""
    card = format_gib(capacity)
    if need.high <= capacity:
        return "fits", None, f"needs at most {format_gib(need.high)} of {card}"
    if need.high - paged <= capacity:
        missing = format_gib(need.high - capacity)
        return "tight", "by paging", f"fits by paging: {missing} of optimizer state may have to stay on the host"
    if need.low <= capacity:
        return "tight", "context unsure", f"needs {format_gib(need.low)} to {format_gib(need.high)} of {card}"
    if floor <= capacity:
        missing = format_gib(need.low - capacity)
        return "tight", "cache given back", f"only if the allocator gives back {missing} of its cache"
    return "does not fit", None, f"needs at least {format_gib(floor)} of {card}"


def _sum(parts: tuple[Part, ...]) -> Interval:
    return Interval(sum(part.n_bytes.low for part in parts), sum(part.n_bytes.high for part in parts))


def _exactly(n_bytes: int) -> Interval:
    return Interval(n_bytes, n_bytes)
