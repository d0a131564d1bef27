"""Which process of a training on several devices this one is.

It is told by ``torch.distributed``, or before that is set up by the variables that torchrun and accelerate set.
"""

import os
from typing import NamedTuple


class Rank(NamedTuple):
    """A process, counted from 0, of all that train together."""

    number: int
    world_size: int

    def __str__(self) -> str:
        """``3 of 8``, as a passport has it."""
        return f"{self.number} of {self.world_size}"


def rank_of_process() -> Rank | None:
    """The rank of this process, where there is more than one."""
    rank = _of_group() or _of_environment()
    return rank if rank is not None and rank.world_size > 1 else None


def _of_group() -> Rank | None:
    from torch import distributed  # noqa: PLC0415

    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return Rank(distributed.get_rank(), distributed.get_world_size())


def _of_environment() -> Rank | None:
    number = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "")
    world_size = os.environ.get("WORLD_SIZE", "")
    return Rank(int(number), int(world_size)) if number.isdecimal() and world_size.isdecimal() else None
