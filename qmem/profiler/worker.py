"""The worker: a process that runs one job and tells what it reads, event by event.

``python -m qmem.profiler.worker`` reads a request on stdin and writes events to stdout.
It is the only place that imports torch and its relatives, and it ends after one job: bitsandbytes never gives managed
memory back, and a pool that has seen another job is another pool.
"""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import IO, Any, Literal

import msgspec

from qmem.errors import QmemError, UnavailableError, UnsupportedError
from qmem.job import Job
from qmem.profiler.out_of_memory import is_out_of_memory
from qmem.profiler.protocol import Event, Failed, Finished, Noted, Request, Started, encode
from qmem.profiler.refusals import install_hint, libraries_of
from qmem.profiler.watching.guarding import guarded


def main() -> None:
    """Read the request, run it, and tell how it ended."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    with _taken_stdout() as pipe:

        def tell(event: Event) -> None:
            pipe.write(encode(event))

        try:
            _run(request, tell)
        except QmemError as error:
            tell(_refusal(error))
        except Exception as error:  # noqa: BLE001 - whatever a library raises ends the run and is told
            tell(_failure(error))


def _taken_stdout() -> IO[bytes]:
    """The pipe that stood as stdout; what libraries print from here on goes where errors go."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return pipe


def _run(request: Request, tell: Callable[[Event], None]) -> None:
    from qmem.profiler.device import DeviceCounters, host_counters  # noqa: PLC0415

    if request.phantom is not None:
        _load_phantom(request)
    device = DeviceCounters()
    _import_libraries(request.job)
    _check_cuda(request)
    device.attach()
    tell(_started(request, device))
    for note in device.nvml.notes:
        tell(Noted(sentence=note))
    with _watching(request) as verdict:
        from qmem.profiler.running import run_job  # noqa: PLC0415

        try:
            run_job(request, device, tell, verdict)
        finally:
            if verdict is not None:
                tell(guarded(verdict))
    tell(Finished(host=host_counters()))


def _load_phantom(request: Request) -> None:
    from qmem.catalogue import find_gpu  # noqa: PLC0415
    from qmem.phantom import load  # noqa: PLC0415

    assert request.phantom is not None, "asked before"
    load(find_gpu(request.phantom), memory=request.memory)


def _import_libraries(job: Job) -> None:
    for library in libraries_of(job):
        _import_library(library, job)


def _import_library(library: str, job: Job) -> None:
    """A package that is half there may raise anything."""
    try:
        import_module(library)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UnavailableError(
            f"a profile needs {library}, which is installed here but cannot be imported: {why}",
            hint=f"{install_hint(job)} --force-reinstall",
        ) from error


def _check_cuda(request: Request) -> None:
    import torch  # noqa: PLC0415

    if torch.version.cuda is None:
        raise UnavailableError(
            f"torch {torch.__version__} is a build without CUDA", hint="install the CUDA build of torch (pytorch.org)"
        )
    if not torch.cuda.is_available():
        hint = "see qmem doctor" if request.phantom else "use --phantom GPU, for example --phantom a100-80"
        raise UnavailableError("this machine has no GPU that CUDA can use", hint=hint)
    if torch.cuda.get_allocator_backend() != "native":
        raise UnsupportedError("only torch's native allocator keeps the counters", hint="leave backend out")
    torch.cuda.init()  # type: ignore[no-untyped-call]


def _started(request: Request, device: Any) -> Started:
    import torch  # noqa: PLC0415

    from qmem.profiler.passport import library_versions, passport  # noqa: PLC0415

    entries = passport(simulated=request.phantom is not None, alloc_conf=os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
    if device.context_bytes is not None:
        entries["context bytes"] = str(device.context_bytes)
    versions = library_versions(request.job)
    return Started(pid=os.getpid(), device=torch.cuda.get_device_name(), passport={**entries, **versions})


def _watching(request: Request) -> AbstractContextManager[Any]:
    """The phantom's readback guard around the run; nothing on a real GPU, which answers for itself."""
    if request.phantom is None:
        return nullcontext()
    from qmem.phantom import guard  # noqa: PLC0415

    return guard.watching()


def _refusal(error: QmemError) -> Failed:
    why: Literal["unsupported", "unavailable"]
    why = "unsupported" if isinstance(error, UnsupportedError) else "unavailable"
    return Failed(why=why, message=error.message, hint=error.hint)


def _failure(error: Exception) -> Failed:
    import traceback  # noqa: PLC0415

    if is_out_of_memory(error):
        # torch adds advice about fragmentation after the numbers.
        return Failed(why="out of memory", message=str(error).partition(" If reserved")[0].partition("\n")[0])
    traceback.print_exc()
    return Failed(why="error", message=f"{type(error).__name__}: {error}".partition("\n")[0])


if __name__ == "__main__":
    main()
