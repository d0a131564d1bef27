"""Puts the phantom in NVIDIA's place in this process, or in the environment of another.

It knows the card and the libraries; what torch does on the device is for torch, and what may be believed of values
that are read back is for the guard.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

from qmem.catalogue import Gpu
from qmem.errors import UnavailableError, UnsupportedError
from qmem.phantom import libraries
from qmem.units import format_gib

MAX_DEVICES = 8
REAL_DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
"""What a machine with a driver has; the last is WSL's."""

MODELLED = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
"""Compute capabilities whose limits the library has (``csrc/core.c``)."""


class Stats(NamedTuple):
    """What the phantom has counted in this process; bytes and numbers.  Each device has its place in a tuple."""

    device_bytes: tuple[int, ...]
    device_peak_bytes: tuple[int, ...]
    context_bytes: tuple[int, ...]
    managed_bytes: int
    managed_peak_bytes: int
    pinned_bytes: int
    pinned_peak_bytes: int
    allocations: int
    frees: int
    out_of_memory: int
    launches: int
    library_calls: int
    copies_to_device: int
    bytes_to_device: int
    copies_to_host: int
    bytes_to_host: int


class PhantomDevice(NamedTuple):
    """A card that is simulated in this process.

    Attributes:
        gpu: the card of the catalogue.
        name: what CUDA calls it here; it ends in ``(phantom)``.
        total_bytes: its capacity.
        context_bytes: what its context takes: the middle of the catalogue's prior, not a measurement.
        devices: how many of it there are.
        settings: the environment that describes it to the library.
    """

    gpu: Gpu
    name: str
    total_bytes: int
    context_bytes: int
    devices: int
    settings: dict[str, str]

    def environment(self) -> dict[str, str]:
        """What another process needs in its environment to see this very device, unmodified."""
        return {**self.settings, "LD_PRELOAD": _preload()}

    def stats(self) -> Stats:
        """What was counted so far."""
        return stats()

    def mark(self, text: str) -> None:
        """Write a line into the log (see ``mark``)."""
        mark(text)


class _Gauge(ctypes.Structure):
    _fields_ = (("now", ctypes.c_uint64), ("peak", ctypes.c_uint64))


class _Books(ctypes.Structure):
    """``Books`` of ``csrc/core.h``."""

    _fields_ = (
        ("magic", ctypes.c_uint64), ("pid", ctypes.c_int32), ("n_devices", ctypes.c_int32),
        ("device", _Gauge * MAX_DEVICES), ("context", ctypes.c_uint64 * MAX_DEVICES),
        ("managed", _Gauge), ("pinned", _Gauge),
        *((name, ctypes.c_uint64) for name in Stats._fields[7:]),
    )  # fmt: skip


def load(gpu: Gpu, *, memory: int | None = None, devices: int = 1, beside_driver: bool = False) -> PhantomDevice:
    """Give this process ``devices`` cards like ``gpu``, for any torch that is imported from now on.

    Args:
        gpu: a card of the catalogue.
        memory: capacity in bytes, in place of the card's own.
        devices: how many cards, 1 to 8.
        beside_driver: go ahead although this machine has a real driver, which this process then never sees.

    Raises:
        UnsupportedError: the card is not NVIDIA's, or too unlike those that the library models.
        UnavailableError: the phantom cannot run here, torch is already loaded, or a phantom is.
    """
    device = describe(gpu, memory=memory, devices=devices)
    _refuse_bad_moment()
    refuse_bad_place(beside_driver=beside_driver)
    os.environ.update(device.settings)
    for path in (libraries.LIBRARY, *libraries.stand_ins()):
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    return device


def describe(gpu: Gpu, *, memory: int | None = None, devices: int = 1) -> PhantomDevice:
    """The device that ``load`` would make, without loading anything; its ``environment()`` starts other processes.

    Raises:
        UnsupportedError: as ``load``.
        UnavailableError: torch is missing or not a CUDA build, or the library is not there.
    """
    _refuse_card(gpu)
    if not 1 <= devices <= MAX_DEVICES:
        raise UnsupportedError(f"{devices} phantom devices were asked for", hint=f"1 to {MAX_DEVICES} are possible")
    available = libraries.availability()
    if not available.can_run:
        raise UnavailableError(available.why)
    prior = gpu.context_prior
    context = (prior.n_bytes.low + prior.n_bytes.high) // 2 if prior else 0
    device = PhantomDevice(gpu, f"{gpu.name} (phantom)", memory or gpu.total_bytes, context, devices, {})
    return device._replace(settings=_settings(device))


def refuse_bad_place(*, beside_driver: bool) -> None:
    """What speaks against a phantom on this machine.

    Raises:
        UnavailableError: there is a real driver, or torch needs functions that the phantom lacks.
    """
    driver = [path for path in REAL_DRIVER if Path(path).exists()]
    if driver and not beside_driver:
        raise UnavailableError(
            f"this machine has a real GPU driver ({driver[0]}), and a phantom would hide it",
            hint="measure on the real GPU, or ask for the phantom beside the driver",
        )
    libraries.refuse_missing_symbols()


def stats() -> Stats:
    """What the phantom of this process has counted.

    Raises:
        UnavailableError: this process has no phantom.
    """
    books = loaded_library().qmem_phantom_books().contents
    n = books.n_devices
    return Stats(
        tuple(gauge.now for gauge in books.device[:n]), tuple(gauge.peak for gauge in books.device[:n]),
        tuple(books.context[:n]),
        books.managed.now, books.managed.peak, books.pinned.now, books.pinned.peak,
        *(getattr(books, name) for name in Stats._fields[7:]),
    )  # fmt: skip


def reset_peaks() -> None:
    """Let every peak start again at what is held now."""
    loaded_library().qmem_phantom_reset_peaks()


def mark(text: str) -> None:
    """Write a line into the log of calls, which exists when ``QMEM_PHANTOM_LOG`` named its file at the start."""
    loaded_library().qmem_phantom_mark(text.encode())


def launched_kernels() -> dict[str, int]:
    """How often each kernel was launched, by its mangled name."""
    library = loaded_library()
    launches: dict[str, int] = {}
    name, count, slot = ctypes.c_char_p(), ctypes.c_uint64(), 0
    while (slot := library.qmem_phantom_kernel(slot, ctypes.byref(name), ctypes.byref(count))) >= 0:
        text = (name.value or b"").decode()
        launches[text] = launches.get(text, 0) + count.value
    return launches


def is_loaded() -> bool:
    """Whether this process has a phantom, loaded or preloaded."""
    return sys.platform == "linux" and str(libraries.LIBRARY) in Path("/proc/self/maps").read_text(encoding="utf-8")


def loaded_library() -> ctypes.CDLL:
    """The library of this process's phantom, for its own functions.

    Raises:
        UnavailableError: this process has no phantom.
    """
    if not is_loaded():
        raise UnavailableError("this process has no phantom GPU", hint="call qmem.phantom.load before importing torch")
    library = ctypes.CDLL(str(libraries.LIBRARY))
    library.qmem_phantom_books.restype = ctypes.POINTER(_Books)
    return library


def _refuse_card(gpu: Gpu) -> None:
    if gpu.not_modelled or gpu.capability is None:
        raise UnsupportedError(f"{gpu.name} cannot be simulated: {gpu.not_modelled or 'it is not an NVIDIA card'}")
    if gpu.capability not in MODELLED:
        known = ", ".join(f"{major}.{minor}" for major, minor in MODELLED)
        raise UnsupportedError(
            f"{gpu.name} has compute capability {gpu.compute_capability}, whose limits the phantom does not know",
            hint=f"it knows {known}",
        )


def _refuse_bad_moment() -> None:
    if is_loaded():
        raise UnavailableError("this process has a phantom GPU already", hint="use one process for each")
    if "torch" in sys.modules:
        raise UnavailableError(
            "torch is loaded already, and with it the real CUDA libraries", hint="load the phantom before torch"
        )


def _settings(device: PhantomDevice) -> dict[str, str]:
    major, minor = device.gpu.capability or (0, 0)
    described: dict[str, object] = {
        "name": device.name, "major": major, "minor": minor, "sm_count": device.gpu.sm_count,
        "total_bytes": device.total_bytes, "context_bytes": device.context_bytes, "devices": device.devices,
        **libraries.cuda_versions()._asdict(), "books": _books_folder(),
    }  # fmt: skip
    return {
        "QMEM_PHANTOM": ";".join(f"{key}={value}" for key, value in described.items()),
        "TRITON_LIBCUDA_PATH": str(libraries.DRIVER_FOLDER),
        "CUDA_VISIBLE_DEVICES": ",".join(str(i) for i in range(device.devices)),
    }


def _books_folder() -> str:
    """Where the processes of one phantom find each other's books: named by the process that made it.

    Books of phantoms whose maker is gone are removed on the way.
    """
    parent = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")  # noqa: S108 - a folder of the user's own
    prefix = f"qmem-phantom-{os.getuid()}-"
    for folder in parent.glob(f"{prefix}*"):
        if not Path("/proc", folder.name.removeprefix(prefix)).exists():
            _remove(folder)
    return str(parent / f"{prefix}{os.getpid()}")


def _remove(folder: Path) -> None:
    try:
        for page in folder.iterdir():
            page.unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        return  # another process was faster, or still uses it


def _preload() -> str:
    paths = [str(path) for path in (libraries.LIBRARY, *libraries.stand_ins())]
    if " " in paths[0] or ":" in paths[0]:
        raise UnavailableError(
            f"the phantom cannot be preloaded from {libraries.FOLDER}: its path has a blank or a colon",
            hint="install qmem under another path, or call qmem.phantom.load in the program itself",
        )
    return ":".join([*paths, *filter(None, [os.environ.get("LD_PRELOAD")])])


def describe_in_words(device: PhantomDevice) -> str:
    """``simulated: 1 x NVIDIA L4 (phantom), 21.99 GiB``."""
    return f"simulated: {device.devices} x {device.name}, {format_gib(device.total_bytes)}"
