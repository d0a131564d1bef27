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
Doubt = Literal["by paging", "cache unknown", "context unsure", "cache given back"]
"""What a tight job hangs on: pages that stay on the host, the size of the allocator's cache or of the CUDA context, or
segments that the allocator gives back when the card is full."""

CACHE_PRIOR_PERCENT = 20
"""The cache where reserved is not known: from nothing to a fifth of allocated.

The most that was seen in ten recorded runs of the real program on PyTorch's own allocator (torch 2.14.1, transformers
5.23.0, bitsandbytes 0.50.2; five jobs under two stacks, default settings): peak reserved was 4 to 20 % above peak
allocated, the most for Llama-3.1-8B, rank 16, 2 x 4096 (24.44 GiB allocated, 29.29 reserved).
"""


SAFETY_MARGIN = "safety margin"
"""The name of the part that is kept free on request."""


class Part(msgspec.Struct, frozen=True):
    """One thing the card must hold, where the number comes from, and what it means where it decides."""

    name: str
    n_bytes: Interval
    because: str
    doubt: Doubt | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer for one card.

    Attributes:
        card: the card's name.
        capacity_bytes: what its driver reports as total memory.
        capacity_unsure: whether that is a sibling card's figure.
        parts: what must be held; the safety margin is one of them only where it was asked for.
        floor_bytes: what the job cannot do without: allocated, the smallest context, and the margin.
        lower_bound: whether the reserved peak is not known: ``need.low`` then counts the allocated one, a lower
            bound, and ``need.high`` a prior for the cache.
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

    The need is reserved + CUDA context + paged bytes, of which anything from none to all may be resident. An estimated
    reserved is an interval where jobs like it were checked; where it is not known it is allocated + a prior for the
    cache.  When the card is full the allocator gives its
    unused segments back and tries again (torch 2.14, ``c10/cuda/CUDACachingAllocator.cpp``,
    ``release_cached_blocks``), so a job is refused only where even its allocated bytes do not fit.

    Raises:
        UnsupportedError: qmem does not model the card.
        UsageError: the margin is negative.
    """
    if margin_bytes < 0:
        raise UsageError(f"the safety margin is {margin_bytes} B, but must be at least 0")
    context = _context(gpu)
    parts = (*_held(ledger.peak), context, *_paged(ledger.paged_bytes), *_margin(margin_bytes))
    floor_bytes = ledger.peak.allocated_bytes + context.n_bytes.low + margin_bytes
    outcome, doubt, because = _judge(parts, floor_bytes, gpu.total_bytes)
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


def _held(peak: Peak) -> tuple[Part, ...]:
    """What torch's allocator holds, or what it hands out and a prior for its cache."""
    if peak.reserved_bytes is not None:
        because = "the allocator's segments at their peak"
        if peak.doubt is None or peak.doubt.reserved_bytes is None:
            return (Part("reserved", _exactly(peak.reserved_bytes), because),)
        return (Part("reserved", peak.doubt.reserved_bytes, f"{because}, as jobs like it had them", "cache unknown"),)
    cache = Interval(0, peak.allocated_bytes * CACHE_PRIOR_PERCENT // 100)
    because = f"a prior, up to {CACHE_PRIOR_PERCENT} % of allocated: reserved is not known"
    return (
        Part("allocated", _exactly(peak.allocated_bytes), "torch's tensors at the peak"),
        Part("allocator's cache", cache, because, "cache unknown"),
    )


def _context(gpu: Gpu) -> Part:
    prior = gpu.context_prior
    if gpu.not_modelled or prior is None:
        raise UnsupportedError(
            f"{gpu.name} cannot be judged: {gpu.not_modelled or 'the size of its context is not known'}",
            hint="qmem gpus lists the cards that can",
        )
    return Part("CUDA context", prior.n_bytes, "a prior, not measured on this card", "context unsure")


def _paged(paged_bytes: int) -> tuple[Part, ...]:
    because = "managed memory: from nothing to all of it on the GPU"
    part = Part("paged optimizer state", Interval(0, paged_bytes), because, "by paging")
    return (part,) if paged_bytes else ()


def _margin(margin_bytes: int) -> tuple[Part, ...]:
    return (Part(SAFETY_MARGIN, _exactly(margin_bytes), "kept free, as asked"),) if margin_bytes else ()


def _judge(parts: tuple[Part, ...], floor_bytes: int, capacity_bytes: int) -> tuple[Outcome, Doubt | None, str]:
    """The outcome, what it hangs on, and its reason.

    Doubtful parts are brought down to their low ends, pages first, until the job fits: the last of them decides.
    """
    need, card = _sum(parts), format_gib(capacity_bytes)
    if need.high <= capacity_bytes:
        return "fits", None, f"needs at most {format_gib(need.high)} of {card}"
    if floor_bytes > capacity_bytes:
        return "does not fit", None, f"needs at least {format_gib(floor_bytes)}, the card has {card}"
    high = need.high
    for part in sorted((part for part in parts if part.doubt), key=_by_ease):
        high -= part.n_bytes.high - part.n_bytes.low
        if high <= capacity_bytes:
            return "tight", part.doubt, _hangs_on(part, capacity_bytes - high)
    missing = format_gib(need.low - capacity_bytes)
    return "tight", "cache given back", f"fits only if the allocator gives back {missing} of its cache"


def _by_ease(part: Part) -> int:
    """Paging is what paged state is for; the cache can be asked for by a replay; the context only be measured."""
    return ("by paging", "cache unknown", "context unsure").index(part.doubt or "")


def _hangs_on(part: Part, left_bytes: int) -> str:
    """Up to which size of the doubtful part the job fits, ``left_bytes`` above its smallest."""
    most = format_gib(part.n_bytes.low + left_bytes)
    if part.doubt == "by paging":
        missing = format_gib(part.n_bytes.high - left_bytes)
        return f"fits by paging: {missing} of optimizer state may have to stay on the host"
    return f"fits if the {part.name} stays within {most}"


def _sum(parts: tuple[Part, ...]) -> Interval:
    return Interval(sum(part.n_bytes.low for part in parts), sum(part.n_bytes.high for part in parts))


def _exactly(n_bytes: int) -> Interval:
    return Interval(n_bytes, n_bytes)
