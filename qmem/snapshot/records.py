"""What stands in a snapshot, as torch writes it (2.4 to 2.14): only the keys that are read, with their types.

It owns names and types, and knows nothing of files and of what the numbers mean together.
Source: ``torch/cuda/memory.py`` (``_snapshot``) and ``torch/csrc/cuda/memory_snapshot.cpp``.
"""

from typing import Annotated, Any

import msgspec

Bytes = Annotated[int, msgspec.Meta(ge=0)]
PoolId = tuple[int, int]

DEFAULT_POOL: PoolId = (0, 0)
NO_LIMIT = -1
"""How torch writes a ``max_split_size`` that is not set."""


class Block(msgspec.Struct, gc=False):
    """A piece of a segment.  ``frames`` is the stack of its request, as it was written and not looked at."""

    address: Bytes
    size: Bytes
    state: str
    requested_size: Bytes = 0
    frames: Any = None

    @property
    def is_held(self) -> bool:
        """Whether a tensor, or a stream that still works on a freed one, holds it."""
        return self.state != "inactive"


class Segment(msgspec.Struct):
    """Memory from the driver; of an expandable segment, a run of pages that are backed by memory."""

    address: Bytes
    total_size: Bytes
    allocated_size: Bytes
    active_size: Bytes
    segment_type: str
    blocks: list[Block]
    stream: int = 0
    device: int = 0
    segment_pool_id: PoolId = DEFAULT_POOL
    is_expandable: bool = False


class Entry(msgspec.Struct, gc=False):
    """One action of the allocator.

    ``addr`` is absent at an ``oom``, which has ``device_free`` instead.  ``pool_id`` is written since torch 2.12,
    ``user_metadata`` since 2.10.
    """

    action: str
    size: Bytes = 0
    addr: Bytes = 0
    stream: int = 0
    device_free: Bytes | None = None
    pool_id: PoolId | None = None
    user_metadata: str = ""
    frames: Any = None


class Settings(msgspec.Struct, rename={"alloc_conf": "PYTORCH_CUDA_ALLOC_CONF"}):
    """``allocator_settings``; sizes are bytes.  ``alloc_conf`` is the text that was set last."""

    alloc_conf: str = ""
    expandable_segments: bool = False
    max_split_size: int = NO_LIMIT
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: dict[str, int] = {}


class Snapshot(msgspec.Struct):
    """All devices.  A device's trace is absent, or empty, where no history was recorded.

    ``settings`` are absent in a snapshot that was not made by ``_snapshot()`` as a whole.
    """

    segments: list[Segment]
    device_traces: list[list[Entry]] = []
    settings: Settings | None = msgspec.field(default=None, name="allocator_settings")
