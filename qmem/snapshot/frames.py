"""Which line of Python an allocation belongs to: stacks in, short names out.

The line is the innermost one outside torch, because torch's own lines are the same for every model; beside it stands
the innermost line of torch that it came through.  It owns that choice and its words, and knows nothing of memory.
"""

import re
from typing import Any, Literal, NamedTuple

By = Literal["line", "module"]
BY: tuple[By, ...] = ("line", "module")

THROUGH = ", by "
"""Between a line and the line of torch that it came through."""
NOT_RECORDED = "no stack was recorded"
NO_PYTHON = "no line of Python: autograd's threads, or C++"

_OF_TORCH = re.compile(r"(?:packages|pytorch|src)/torch/")
_OF_GUARD = re.compile(r"/qmem/phantom/\w+\.py$")
"""Lines of the readback guard, through which every call of torch goes on a simulated device: they explain nothing."""
_INSTALLED = re.compile(r"^.*/(?:site|dist)-packages/")
_TRUNK = re.compile(r"^.*/(?=[^/]+/[^/]+$)")
"""All of a path but its last folder and its file."""


class Frame(NamedTuple):
    """A line of Python."""

    path: str
    line: int
    function: str

    @property
    def is_of_torch(self) -> bool:
        """Whether it is a line of torch itself."""
        return _OF_TORCH.search(self.path) is not None

    @property
    def file(self) -> str:
        """``transformers/models/qwen3/modeling_qwen3.py``, or for other files the last folder and the file."""
        installed = _INSTALLED.sub("", self.path)
        return installed if installed != self.path else _TRUNK.sub("", self.path)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


class Holders:
    """Names stacks; one that was named is not read again.

    A stack is known by its place in memory, so that all stacks must live as long as this.
    """

    def __init__(self, by: By) -> None:
        self.by = by
        self._names: dict[int, str] = {}

    def name(self, frames: Any, label: str = "") -> str:
        """Who holds an allocation: a line of Python, and the label that its request carried."""
        if id(frames) not in self._names:
            self._names[id(frames)] = _place(frames, self.by)
        place = self._names[id(frames)]
        return f"{place} [{label}]" if label else place


def _place(frames: Any, by: By) -> str:
    stack = _python_frames(frames)
    if not stack:
        return NOT_RECORDED if frames is None else NO_PYTHON
    outside = next((frame for frame in stack if not frame.is_of_torch), None)
    if by == "module":
        return (outside or stack[0]).file
    if outside is None or outside is stack[0]:
        return str(stack[0])
    return f"{outside}{THROUGH}{stack[0]}"


def _python_frames(frames: Any) -> list[Frame]:
    """The lines of Python, the innermost first; with ``stacks="all"`` most of a stack is C++."""
    listed = frames if isinstance(frames, list) else []
    read = (_frame(raw) for raw in listed)
    return [frame for frame in read if frame is not None and not _OF_GUARD.search(frame.path)]


def _frame(raw: Any) -> Frame | None:
    if not isinstance(raw, dict):
        return None
    path, line, function = raw.get("filename"), raw.get("line"), raw.get("name")
    if not (isinstance(path, str) and isinstance(line, int) and isinstance(function, str)):
        return None
    return Frame(path.replace("\\", "/"), line, function) if path.endswith(".py") or path.startswith("<") else None
