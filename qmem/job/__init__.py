"""What is asked: a training job as names and numbers."""

from typing import TYPE_CHECKING, Any

from qmem.job.job import Job, assumed_defaults, make_job

if TYPE_CHECKING:
    from qmem.job.file import read_job_file
    from qmem.job.objects import job_from_objects

__all__ = ["Job", "assumed_defaults", "job_from_objects", "make_job", "read_job_file"]


def __getattr__(name: str) -> Any:
    """The two readers load when they are asked for: most jobs come from flags alone."""
    if name == "read_job_file":
        from qmem.job.file import read_job_file  # noqa: PLC0415

        return read_job_file
    if name == "job_from_objects":
        from qmem.job.objects import job_from_objects  # noqa: PLC0415

        return job_from_objects
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
