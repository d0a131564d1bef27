"""Questions that only a loaded library can answer, asked in a process of their own: ``python -m qmem.doctor.probe``.

A crash, a hang or a warning of the library stays in that process.  Prints one JSON object.  Knows nothing of qmem.
"""

import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

_DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_ATTRIBUTES = {"multiprocessors": 16, "major": 75, "minor": 76, "concurrent_managed_access": 89}
"""``CUdevice_attribute`` of CUDA's driver API (cuda.h)."""


def driver() -> dict[str, Any]:
    """The driver and its devices, as CUDA sees them; starts no context."""
    try:
        cuda = ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError:
        return {"why_not": f"no NVIDIA driver: {_DRIVER_LIBRARY} cannot be loaded"}
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    found = {"cuda": f"{version.value // 1000}.{version.value % 1000 // 10}", "gpus": []}
    code = cuda.cuInit(0)
    if code:
        return {**found, "why_not": f"cuInit: {_error(cuda, code)}"}
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return {**found, "gpus": [_device(cuda, index) for index in range(count.value)]}


def _error(cuda: Any, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {code}"


def _device(cuda: Any, index: int) -> dict[str, Any]:
    device, name, total = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    facts = {fact: _attribute(cuda, number, device) for fact, number in _ATTRIBUTES.items()}
    major, minor = facts.pop("major"), facts.pop("minor")
    managed = facts.pop("concurrent_managed_access")
    return {
        "name": name.value.decode(),
        "total_bytes": total.value,
        "compute_capability": f"{major}.{minor}",
        "concurrent_managed_access": None if managed is None else bool(managed),
        **facts,
    }


def _attribute(cuda: Any, number: int, device: ctypes.c_int) -> int | None:
    value = ctypes.c_int()
    return None if cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device) else value.value


def nvml() -> dict[str, Any]:
    """What the management library says: driver version, devices, MIG."""
    pynvml: Any = importlib.import_module("pynvml")
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "gpus": [{"name": pynvml.nvmlDeviceGetName(handle), "mig": _mig(pynvml, handle)} for handle in handles],
        }
    except pynvml.NVMLError as error:
        return {"why_not": str(error)}


def _mig(pynvml: Any, handle: Any) -> bool | None:
    """Whether the card is cut into instances; absent where it cannot be or may not be told."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:
        return None


def torch() -> dict[str, Any]:
    """The build of torch and the devices that it can use."""
    torch: Any = importlib.import_module("torch")
    usable = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if usable else []
    return {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": names}


QUESTIONS: dict[str, Callable[[], dict[str, Any]]] = {"driver": driver, "nvml": nvml, "torch": torch}

if __name__ == "__main__":
    json.dump(QUESTIONS[sys.argv[1]](), sys.stdout)
