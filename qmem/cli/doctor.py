"""``qmem doctor``: what this machine can do, on one screen."""

from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING

from qmem.cli.command import VerbCommand, json_option
from qmem.cli.streams import MIN_WIDTH, write_note, write_result

if TYPE_CHECKING:
    from qmem.doctor import Health
    from qmem.doctor.ask import GpuSeen, Torch
    from qmem.doctor.examine import Ability
    from qmem.doctor.libraries import Library

LABEL_WIDTH = 12


def show_health(as_json: bool) -> None:
    """Print what was found; that something is missing is an answer and no failure."""
    from qmem.doctor import examine

    if not as_json:
        write_note("asking the driver, NVML and torch")
    health = examine()
    if as_json:
        import msgspec

        from qmem.ledger import SCHEMA_VERSION

        found = {"schema_version": SCHEMA_VERSION, **msgspec.to_builtins(health)}
        write_result(msgspec.json.encode(found).decode() + "\n")
    else:
        write_result(page(health))


def page(health: "Health") -> str:
    """The screen: machine, driver, torch, libraries, extras, then what can be done and what is in the way."""
    lines = [
        *_line("qmem", f"{health.qmem or 'not installed'}, Python {health.python}, {health.system}{_wsl(health)}"),
        *_line("driver", _driver(health)),
        *[line for gpu in health.driver.gpus for line in _line("GPU", _gpu(gpu))],
        *_line("NVML", health.nvml.why_not or f"driver {health.nvml.driver}, MIG {_mig(health)}"),
        *_line("torch", _torch(health)),
        *_line("libraries", ", ".join(map(_library, health.libraries))),
        *_line("allocator", ", ".join(f"{name}={value}" for name, value in health.allocator.items()) or "torch's own"),
        *[line for extra in health.extras for line in _line("extra", _extra(extra.name, extra.missing, extra.install))],
        "",
        *[line for able in health.abilities for line in _line("yes" if able.can else "no", _ability(able))],
        *([""] if health.problems else []),
        *[line for problem in health.problems for line in _line("problem", problem)],
    ]
    return "\n".join(lines) + "\n"


def _line(label: str, text: str) -> list[str]:
    width = max(get_terminal_size().columns, MIN_WIDTH)
    return wrap(
        text, width, initial_indent=f"{label:{LABEL_WIDTH}}", subsequent_indent=" " * LABEL_WIDTH,
        break_on_hyphens=False,
    )  # fmt: skip


def _wsl(health: "Health") -> str:
    return ", WSL" if health.wsl else ""


def _driver(health: "Health") -> str:
    driver, n_gpus = health.driver, len(health.driver.gpus)
    runs = f"CUDA up to {driver.cuda}" if driver.cuda else ""
    return ", ".join(filter(None, (runs, driver.why_not or f"{n_gpus} GPU{'' if n_gpus == 1 else 's'}")))


def _gpu(gpu: "GpuSeen") -> str:
    from qmem.units import format_gib

    managed = {True: "yes", False: "no", None: "not told"}[gpu.concurrent_managed_access]
    total = format_gib(gpu.total_bytes) if gpu.total_bytes is not None else "memory not told"
    return f"{gpu.name}, {total}, compute capability {gpu.compute_capability}, concurrent managed access: {managed}"


def _mig(health: "Health") -> str:
    modes = {gpu.mig for gpu in health.nvml.gpus}
    return "on" if True in modes else "off" if False in modes else "not told"


def _torch(health: "Health") -> str:
    torch = health.torch
    if torch.version is None:
        return torch.why_not or "not installed"
    usable = f"can use {', '.join(torch.gpus)}" if torch.gpus else "can use no GPU"
    return f"{torch.version}, {_build(torch)}, {usable}"


def _build(torch: "Torch") -> str:
    if torch.cuda:
        return f"built for CUDA {torch.cuda}"
    return f"built for ROCm {torch.hip}" if torch.hip else "CPU build"


def _library(library: "Library") -> str:
    """``torch 2.14.1 as checked``, ``peft 0.13.2 (checked with 0.21.2)``, ``peft missing (checked with 0.21.2)``."""
    if library.installed and library.installed.partition("+")[0] in library.checked:
        return f"{library.name} {library.installed} as checked"
    return f"{library.name} {library.installed or 'missing'} (checked with {', '.join(library.checked)})"


def _extra(name: str, missing: tuple[str, ...], install: str) -> str:
    return f"{name}: {', '.join(missing)} missing; {install}" if missing else f"{name}: complete"


def _ability(able: "Ability") -> str:
    return able.name if able.can else f"{able.name}: {able.why_not}"


command = VerbCommand(
    "doctor",
    callback=show_health,
    params=[json_option()],
    help="What this machine can do: GPU, driver, NVML, torch, versions, allocator settings, extras.\n\n"
    "Exit code 0 whatever it finds.",
    epilog="Example: qmem doctor --json",
)
