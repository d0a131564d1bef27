"""The GPUs that qmem knows: facts as data (``gpus.json``), each with its source.

It owns what a card is; whether a job fits on it is for the planner.
"""

import re
from functools import cache

import msgspec

from qmem.catalogue.names import nearest
from qmem.catalogue.packaged import read_packaged
from qmem.errors import UsageError
from qmem.ledger import Interval
from qmem.units import MIB

COMMON_GPUS = (
    "rtx-3070",
    "rtx-3060",
    "t4",
    "rtx-4060-ti-16",
    "rtx-4090",
    "rtx-5090",
    "a100-40",
    "l40s",
    "a100-80",
    "h200",
)
"""A well-known card of each size, smallest first, for the row of verdicts."""


class ContextPrior(msgspec.Struct, frozen=True):
    """What a CUDA context with its modules takes before it has been measured, in MiB, both ends included."""

    low_mib: int
    high_mib: int
    source: str

    @property
    def n_bytes(self) -> Interval:
        """The prior in bytes."""
        return Interval(self.low_mib * MIB, self.high_mib * MIB)


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One card.

    Attributes:
        id: the name qmem gives it.
        name: the name CUDA gives it.
        nominal_gib: the size it is sold with.
        total_bytes: the total that CUDA reports under Linux, from ``counter``; the smallest that was found.
        source: the text that ``total_bytes`` was read from.
        unsure_fields: fields for which a sibling card stands in.
        compute_capability: ``8.9``; absent for cards that are not NVIDIA's.
        gfx: AMD's name of the architecture.
        sm_count: multiprocessors (AMD: compute units).
        memory: kind of memory.
        context: which context prior applies; absent where none is known.
        note: what a reader of the numbers must know.
        not_modelled: why qmem's figures do not hold on this card, else empty.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    nominal_gib: int
    total_bytes: int
    counter: str
    source: str
    sm_count: int
    sm_source: str
    memory: str
    unsure_fields: tuple[str, ...] = ()
    compute_capability: str | None = None
    gfx: str | None = None
    context: str | None = None
    note: str = ""
    not_modelled: str = ""

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability as torch gives it: ``(8, 9)``."""
        if self.compute_capability is None:
            return None
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)

    @property
    def context_prior(self) -> ContextPrior | None:
        """What the context takes before it has been measured; absent where nothing is known."""
        return _file().context_priors[self.context] if self.context else None


class _File(msgspec.Struct, frozen=True):
    about: tuple[str, ...]
    counters: dict[str, str]
    context_priors: dict[str, ContextPrior]
    gpus: tuple[Gpu, ...]


def all_gpus() -> tuple[Gpu, ...]:
    """Every card of the catalogue: consumer, workstation, data centre."""
    return _file().gpus


def find_gpu(name: str) -> Gpu:
    """The card that ``name`` means: ``rtx-4090``, ``RTX 4090``, ``4090``, ``a100-80gb``, CUDA's own name.

    Raises:
        UsageError: no card or several cards are called so; the nearest three or all of them are named.
    """
    gpus = _by_name().get(_plain(name), ())
    if len(gpus) > 1:
        raise UsageError(f"{name} can mean {' or '.join(gpu.id for gpu in gpus)}", hint="name one of them")
    if not gpus:
        raise UsageError(f"no GPU is called {name!r}", hint=f"nearest: {', '.join(_nearest_ids(name))} (qmem gpus)")
    return gpus[0]


@cache
def _file() -> _File:
    return msgspec.json.decode(read_packaged("gpus.json"), type=_File)


@cache
def _by_name() -> dict[str, tuple[Gpu, ...]]:
    """Plain name to the cards it can mean; an id means its own card, whatever others are called."""
    index: dict[str, tuple[Gpu, ...]] = {}
    for gpu in all_gpus():
        for key in dict.fromkeys(_plain(name) for name in (gpu.name, *gpu.aliases)):
            index[key] = (*index.get(key, ()), gpu)
    return {**index, **{_plain(gpu.id): (gpu,) for gpu in all_gpus()}}


def _plain(name: str) -> str:
    """The spelling by which names are compared: no case, blanks, hyphens, makers, or GB after a number."""
    plain = re.sub(r"nvidia|geforce|tesla|amd|instinct|[\s_-]+", "", name.casefold())
    return re.sub(r"(?<=\d)gi?b$", "", plain)


def _nearest_ids(name: str) -> list[str]:
    index = _by_name()
    keys = nearest(_plain(name), index, count=20)
    return list(dict.fromkeys(index[key][0].id for key in keys))[:3]
