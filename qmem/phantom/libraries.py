"""The phantom's built libraries, and the torch that they serve: where, which version, what is missing.

It finds torch without importing it, and never loads anything.
"""

import platform
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from qmem.errors import UnavailableError
from qmem.phantom.elf import dynamic_symbols

FOLDER = Path(__file__).with_name("lib")
LIBRARY = FOLDER / "libqmem-phantom.so"
DRIVER_FOLDER = FOLDER / "driver"
"""Holds a file called ``libcuda.so.1``, for Triton, which looks the driver up by file name."""

TESTED_TORCH = ("2.4.1", "2.8.0", "2.11.0", "2.14.1")
"""Releases that ran on the phantom; the symbols of any other are checked before it is loaded."""

NVIDIA_NAME = re.compile(
    r"(__)?cuda[A-Z]\w*|cu(blas|blasLt|dnn|sparse|sparseLt|solver|solverDn|fft|rand|pti|File)?[A-Z]\w*"
    r"|(nccl|nvrtc|nvml|nvshmemx?_|nvshmemid_|nvtx)\w*"
)
"""How functions of NVIDIA's libraries are called."""


class Availability(NamedTuple):
    """Whether the phantom can run here; ``why`` says what stands in the way, else it is empty."""

    can_run: bool
    why: str


class CudaVersions(NamedTuple):
    """Versions that torch was built with, as the libraries number them: 13000, 130101, 92400."""

    cudart: int
    cublas: int
    cudnn: int


def availability() -> Availability:
    """Whether this machine can run the phantom.  Nothing is loaded to find out.

    A real driver is not an obstacle here: ``load`` refuses it, unless it is told to go ahead.
    """
    why = _why_no_library() or _why_no_torch()
    return Availability(not why, why)


def stand_ins() -> tuple[Path, ...]:
    """The empty libraries with NVIDIA's names, to be loaded before torch."""
    return tuple(sorted((FOLDER / "sonames").glob("*.so")))


def torch_version() -> str:
    """The installed torch's version without its build: ``2.14.1``."""
    return _assigned("__version__").partition("+")[0]


def cuda_versions() -> CudaVersions:
    """The versions that the installed torch was built with, from its own metadata."""
    cuda = _assigned("cuda")
    major, minor = (int(part) for part in cuda.split(".")[:2])
    return CudaVersions(
        cudart=1000 * major + 10 * minor,
        cublas=_number(_pinned("cublas") or f"{cuda}.0"),
        cudnn=_number(_pinned("cudnn") or "9.1.0"),
    )


def missing_symbols() -> tuple[str, ...]:
    """Functions of NVIDIA's libraries that the installed torch and bitsandbytes link to and the phantom lacks."""
    has = dynamic_symbols(LIBRARY).defined
    wanted: set[str] = set()
    for path in _linked_to_nvidia():
        wanted |= dynamic_symbols(path).wanted
    return tuple(sorted(name for name in wanted - has if NVIDIA_NAME.fullmatch(name)))


def refuse_missing_symbols() -> None:
    """Checks a torch that was not tested.

    Raises:
        UnavailableError: it links to functions that the phantom does not have; they are named.
    """
    if torch_version() in TESTED_TORCH:
        return
    if missing := missing_symbols():
        raise UnavailableError(
            f"torch {torch_version()} needs {len(missing)} functions that the phantom GPU lacks: {', '.join(missing)}",
            hint=f"the phantom ran with torch {', '.join(TESTED_TORCH)}",
        )


def _why_no_library() -> str:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the phantom GPU exists for Linux on x86-64 only; this is {platform.system()} on {platform.machine()}"
    if LIBRARY.exists():
        return ""
    note = FOLDER / "why-not.txt"
    reason = note.read_text(encoding="utf-8").strip() if note.exists() else "it was installed without being built"
    return f"the phantom GPU's library is not there: {reason}; install a C compiler, then qmem again"


def _why_no_torch() -> str:
    if find_spec("torch") is None:
        return "torch is not installed; the phantom GPU runs its CUDA build (pip install 'qmem-planner[profile]')"
    if not _assigned("cuda"):
        return f"torch {_assigned('__version__')} is not a CUDA build, and only those have something to simulate"
    return ""


@cache
def _torch_folder() -> Path:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise UnavailableError("torch is not installed", hint="install its CUDA build: pip install torch")
    return Path(spec.origin).parent


@cache
def _assigned(name: str) -> str:
    """What ``torch/version.py`` assigns to a name; empty for ``None``."""
    text = (_torch_folder() / "version.py").read_text(encoding="utf-8")
    found = re.search(rf"^{name}\b[^=]*=\s*'([^']*)'", text, re.MULTILINE)
    return found[1] if found else ""


def _pinned(library: str) -> str:
    """The version of NVIDIA's wheel that is installed, else the one torch's metadata asks for, else empty."""
    from importlib.metadata import distributions, requires  # noqa: PLC0415 - slow, and rarely needed

    major = _assigned("cuda").partition(".")[0]
    names = {f"nvidia-{library}-cu{major}", f"nvidia-{library}"}
    for distribution in distributions():
        if distribution.name in names:
            return distribution.version
    wanted = " ".join(requires("torch") or ())
    found = re.search(rf"nvidia-{library}(?:-cu\d+)?\s*==\s*([\d.]+)", wanted)
    return found[1] if found else ""


def _number(version: str) -> int:
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return 10000 * major + 100 * minor + patch


def _linked_to_nvidia() -> list[Path]:
    torch = _torch_folder()
    paths = [*(torch / "lib").glob("*.so*"), *torch.glob("_C*.so")]
    bitsandbytes = find_spec("bitsandbytes")
    if bitsandbytes is not None and bitsandbytes.origin is not None:
        major = _assigned("cuda").partition(".")[0]
        paths += Path(bitsandbytes.origin).parent.glob(f"libbitsandbytes_cuda{major}*.so")
    return paths
