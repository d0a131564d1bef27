"""The passport of a profile: what it ran on, so that two can be compared.  Versions, driver, settings, date, commit."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from qmem.job import Job
from qmem.profiler.refusals import libraries_of


def library_versions(job: Job) -> dict[str, str]:
    """The versions that run, of the libraries that the job's stack imports and that are installed."""
    return installed_versions(libraries_of(job))


def installed_versions(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    found = {}
    for library in libraries:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def passport(*, simulated: bool, alloc_conf: str) -> dict[str, str]:
    """Date, machine and settings.  Call once CUDA is up."""
    import platform  # noqa: PLC0415

    import torch  # noqa: PLC0415

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    major, minor = properties.major, properties.minor
    entries = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "qmem": _own_version(),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "wsl": "yes" if _is_wsl() else "",
        "cuda": torch.version.cuda or "",
        "driver": _driver(),
        "device uuid": "" if simulated else str(getattr(properties, "uuid", "")),
        "compute capability": f"{major}.{minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "total bytes": str(properties.total_memory),
        "allocator": torch.cuda.get_allocator_backend(),
        "alloc_conf": alloc_conf,
        "simulated": "yes" if simulated else "no",
    }
    return {name: value for name, value in entries.items() if value}


def _own_version() -> str:
    from importlib.metadata import version  # noqa: PLC0415

    return version("qmem-planner")


def _commit() -> str:
    """The commit of the folder that the profile is made in, where it is a git repository."""
    import subprocess  # noqa: PLC0415

    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _is_wsl() -> bool:
    """Under WSL NVML tells no process memory, and managed memory cannot be oversubscribed."""
    try:
        with open("/proc/sys/kernel/osrelease") as release:  # noqa: PTH123
            return "microsoft" in release.read().lower()
    except OSError:
        return False


def _driver() -> str:
    """The driver's version, where NVML tells it."""
    try:
        import pynvml  # noqa: PLC0415

        pynvml.nvmlInit()
        version: Any = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # noqa: BLE001 - a missing package, library or permission: the entry is absent then
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)
