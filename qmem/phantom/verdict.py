"""What the guard says: every read, why its values may be trusted or not, and what that makes of a result."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch

from qmem.errors import UsageError
from qmem.phantom.calls import without_modes
from qmem.phantom.knowledge import HOST_VALUES, Knowledge, Known, fills_its_storage, is_small, on_host

State = Literal["clean", "assumed", "tainted"]

TORCH_FOLDER = str(Path(torch.__file__).parent)
THIS_FOLDER = str(Path(__file__).parent)


class Consumer(NamedTuple):
    """A function of a library that reads numbers only to log them.

    Attributes:
        file: the end of its path.
        function: its name.
        what: what it logs.
    """

    file: str
    function: str
    what: str


LOGGED: tuple[Consumer, ...] = (
    Consumer("trl/trainer/sft_trainer.py", "compute_loss", "entropy and token accuracy"),
    Consumer("bitsandbytes/functional.py", "as_dict", "the offset of a quantization state, as text of a checkpoint"),
)
"""Consumers whose unknown reads of one number are harmless.  trl 1.16 was read: every other read there is of labels and
masks, which are known.  bitsandbytes 0.43 and 0.50 pack the offset into a text on the host (``from_pretrained`` of
transformers 4.48 asks a quantized model for its state)."""

ONE_NUMBER = 8
"""Bytes of the longest number."""


class Standing(NamedTuple):
    """Why a value may be trusted, and whether an assumption had a part in it."""

    why: str
    assumed: bool


class Read(NamedTuple):
    """A copy of device memory to the host.

    Attributes:
        kernel: the last kernel before it.
        line: the Python line that asked.
        n_bytes: how much was read.
        why: why its values may be trusted, or that they may not.
        state: what it makes of the result.
    """

    kernel: str
    line: str
    n_bytes: int
    why: str
    state: State


class Verdict:
    """What the guard saw, while and after it watched."""

    def __init__(self, logged: tuple[Consumer, ...] = LOGGED) -> None:
        self.reads: list[Read] = []
        self.declared: list[str] = []
        self.zeros: list[str] = []
        self._logged = logged
        self.knowledge = Knowledge()

    @property
    def state(self) -> State:
        """The worst of all reads; ``clean`` without any."""
        states = {read.state for read in self.reads}
        return "tainted" if "tainted" in states else "assumed" if "assumed" in states else "clean"

    @property
    def tainting(self) -> list[Read]:
        """The reads whose values were not true."""
        return [read for read in self.reads if read.state == "tainted"]

    def declare(self, tensor: torch.Tensor, why: str, value: float = 1.0) -> None:
        """From now on ``tensor`` reads as ``value`` everywhere, and so does what is computed from it.

        For numbers that a healthy run has and whose value changes no shape: the loss, the gradient norm.

        Raises:
            UsageError: the tensor is too large for a number, or not on the phantom.
        """
        self._put(tensor, torch.full(tensor.shape, value, dtype=tensor.dtype), why, assumed=False)

    def assume(self, tensor: torch.Tensor, values: torch.Tensor, why: str) -> None:
        """From now on ``tensor`` holds ``values`` by the named assumption, such as balanced routing.

        Every read that rests on them makes the result assumed.

        Raises:
            UsageError: the tensor is too large to be followed, or not on the phantom.
        """
        self._put(tensor, values, why, assumed=True)

    @contextmanager
    def assuming_zeros(self, why: str) -> Iterator[None]:
        """Every unknown value that is read in this block is nothing, by the named assumption."""
        self.zeros.append(why)
        try:
            yield
        finally:
            self.zeros.pop()

    def can_follow(self, tensor: torch.Tensor) -> bool:
        """Whether values can be declared or assumed of ``tensor``: it is on the phantom, small, and a whole storage."""
        return is_small(tensor) and fills_its_storage(tensor)

    def record(self, kernel: str, n_bytes: int, standing: Standing | None) -> None:
        """Judge a read; without a standing its values are unknown."""
        line = asking_line()
        why, state = self._judged(n_bytes, standing, line)
        self.reads.append(Read(readable(kernel), str(line), n_bytes, why, state))

    def _judged(self, n_bytes: int, standing: Standing | None, line: "Line") -> tuple[str, State]:
        if standing is not None:
            return standing.why, "assumed" if standing.assumed else "clean"
        if self.zeros:
            return self.zeros[-1], "assumed"
        if self.declared:
            return f"declared: {self.declared[-1]}", "clean"
        for consumer in self._logged:
            if n_bytes <= ONE_NUMBER and line.function == consumer.function and line.path.endswith(consumer.file):
                return f"logged only: {consumer.what}", "clean"
        return "its values were never computed", "tainted"

    def _put(self, tensor: torch.Tensor, values: torch.Tensor, why: str, *, assumed: bool) -> None:
        with without_modes(), torch.no_grad():
            if not self.can_follow(tensor):
                raise UsageError(f"a tensor of {tuple(tensor.shape)} {tensor.dtype} on {tensor.device} is not followed")
            on_host(tensor.detach()).copy_(values)
            self.knowledge.learn(tensor, why, assumed=assumed)


def combined(known: list[Known]) -> Standing:
    """What may be said of a result that rests on all of these."""
    reasons = [one.why for one in known if one.why != HOST_VALUES]
    return Standing(reasons[0] if reasons else HOST_VALUES, any(one.assumed for one in known))


def readable(kernel: str) -> str:
    """A kernel's name without its template arguments: ``at::native::reduce_kernel``."""
    if not kernel.startswith("_Z"):
        return kernel
    demangle: Any = ctypes.CDLL("libstdc++.so.6")["__cxa_demangle"]
    demangle.restype = ctypes.c_void_p
    text = demangle(kernel.encode(), None, None, None)
    if not text:
        return kernel
    name = ctypes.string_at(text).decode()  # 100 bytes for each read of a run: not worth a free
    return name.replace("void ", "").replace("(anonymous namespace)::", "").partition("<")[0].partition("(")[0]


class Line(NamedTuple):
    """A line of Python that asked for a value."""

    path: str
    number: int
    function: str

    def __str__(self) -> str:
        """``transformers/trainer.py:1693 in training_step``."""
        if not self.number:
            return self.path
        return f"{self.path.rpartition('site-packages/')[2]}:{self.number} in {self.function}"


def asking_line() -> Line:
    """The innermost Python line outside of torch and the guard; torch's own, if there is no other."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect is ten times slower
    asking = Line("no Python line: a thread of torch's own", 0, "")
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((THIS_FOLDER, "<")):
            line = Line(path, frame.f_lineno, frame.f_code.co_name)
            if not path.startswith(TORCH_FOLDER):
                return line
            asking = asking if asking.number else line
        frame = frame.f_back
    return asking
