"""What sees the whole device: the driver's free memory and NVML, asked by the device's UUID.

Every counter is read on its own and left out where the machine does not answer; the reason is kept as a sentence.
It knows nothing of phases.

Sources: NVML API reference; nvidia-ml-py.  NVML's v2 memory call leaves driver-reserved memory out of ``used``; on
WSL it has failed, so v1 stands in.  In containers process ids are those of the host, and under WSL and WDDM the
memory of a process is not told at all.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from qmem.profiler.residency import bytes_on_device

DRIVER_USED = "mem_get_info"
NVML_USED = "nvml used"
NVML_PROCESS = "nvml process"


class Nvml:
    """NVML as far as it answers.

    Attributes:
        notes: why something is missing, a sentence each.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._library: Any = None
        self._handle: Any = None
        self._open()
        self.used_before = self._used_by_device()

    def _open(self) -> None:
        """A missing package, library or permission is a note."""
        try:
            import pynvml  # noqa: PLC0415
        except ImportError:
            self.notes.append("NVML is not asked: nvidia-ml-py is not installed")
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.notes.append(f"NVML does not answer: {error}")
            return
        self._library = pynvml

    def _used_by_device(self) -> dict[str, int]:
        """What is used on each device that NVML lists, by UUID."""
        nvml, found = self._library, {}
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            with suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                found[_text(nvml.nvmlDeviceGetUUID(handle))] = self._used(handle)
        return found

    def select(self, uuid: str) -> str | None:
        """Ask of the device with CUDA's UUID from now on, and return NVML's: the order of devices differs from CUDA's.

        Of a MIG slice the UUID leads to the slice.
        """
        if self._library is None:
            return None
        for name in (f"GPU-{uuid}", f"MIG-{uuid}"):
            with suppress(self._library.NVMLError):
                self._handle = self._library.nvmlDeviceGetHandleByUUID(name)
                return name
        self.notes.append(f"NVML has no device with the UUID {uuid}")
        return None

    def device_used(self) -> int | None:
        """``used`` of the selected device."""
        return self._asked(NVML_USED, lambda: self._used(self._handle))

    def process_used(self) -> int | None:
        """What NVML counts for this process; managed pages are never part of it."""
        return self._asked(NVML_PROCESS, self._process_used)

    def _used(self, handle: Any) -> int:
        """Without what the driver reserves, where NVML's second version answers."""
        nvml = self._library
        with suppress(nvml.NVMLError, AttributeError):
            return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used)
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)

    def _process_used(self) -> int | None:
        for process in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        self._note(NVML_PROCESS, "it does not list this process, as in a container or under WSL")
        return None

    def _asked(self, counter: str, ask: Callable[[], int | None]) -> int | None:
        if self._handle is None:
            return None
        try:
            return ask()
        except self._library.NVMLError as error:
            self._note(counter, str(error))
            return None

    def _note(self, counter: str, reason: str) -> None:
        note = f"no reading of {counter}: {reason}"
        if note not in self.notes:
            self.notes.append(note)


class DeviceCounters:
    """Bytes of the whole device by counter.

    Attributes:
        nvml: made before the process has a context, so that it knows what others use.
        context_bytes: what the context took before anything was allocated; absent where NVML cannot tell.
    """

    def __init__(self) -> None:
        self.nvml = Nvml()
        self.context_bytes: int | None = None

    def attach(self) -> None:
        """Find the current CUDA device in NVML, and measure its context.  Call once CUDA is up."""
        import torch  # noqa: PLC0415

        uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
        # Asking the driver makes the context, if it is not there yet.
        _driver_used()
        name = self.nvml.select(str(uuid)) if uuid is not None else None
        before, after = self.nvml.used_before.get(name or ""), self.nvml.device_used()
        if before is not None and after is not None:
            self.context_bytes = after - before

    def resident(self, ranges: Iterable[tuple[int, int]]) -> int | None:
        """How many bytes of managed ranges (address, size) lie on the GPU; absent where the driver cannot tell."""
        import torch  # noqa: PLC0415

        return bytes_on_device(ranges, torch.cuda.current_device())

    def read(self) -> dict[str, int]:
        """Every counter that answers, the driver's last: it is right on MIG too, where NVML may show the whole card."""
        found = {
            NVML_USED: self.nvml.device_used(),
            NVML_PROCESS: self.nvml.process_used(),
            DRIVER_USED: _driver_used(),
        }
        return {name: n_bytes for name, n_bytes in found.items() if n_bytes is not None}


def _driver_used() -> int:
    """``cudaMemGetInfo``."""
    import torch  # noqa: PLC0415

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def host_counters() -> dict[str, int]:
    """The most host memory that this process held, and pinned, where torch counts it (2.6 and later)."""
    import torch  # noqa: PLC0415

    found = _most_resident()
    if hasattr(torch.cuda, "host_memory_stats"):
        pinned = torch.cuda.host_memory_stats().get("allocated_bytes.peak")
        if pinned is not None:
            found["pinned peak"] = int(pinned)
    return found


def _most_resident() -> dict[str, int]:
    """The most host memory that this process held; Windows has no such count."""
    import sys  # noqa: PLC0415

    if sys.platform == "win32":
        return {}
    import resource  # noqa: PLC0415

    unit = 1 if sys.platform == "darwin" else 1024
    return {"rss peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
