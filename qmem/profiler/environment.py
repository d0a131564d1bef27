"""The worker's environment: what the job decides, and nothing that the user's shell happens to say about it."""

import os

from qmem.job import Job

DECIDED = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING",
           "CUBLAS_WORKSPACE_CONFIG", "ACCELERATE_MIXED_PRECISION")  # fmt: skip
"""Variables that change memory; a job has fields for the first, the others are not modelled."""

QUIET = {
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded for a profile
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONHASHSEED": "0",  # transformers makes Gemma 4's masks in the order of a set: a run shall repeat to the byte
    "PYTHONSAFEPATH": "1",  # a folder that is called like a library is none, wherever qmem is called (3.11 and later)
}


def worker_environment(job: Job) -> dict[str, str]:
    """The variables of the process that runs a job."""
    inherited = {name: value for name, value in os.environ.items() if name not in DECIDED}
    settings = [job.alloc_conf, "expandable_segments:True" if job.expandable_segments else ""]
    alloc_conf = ",".join(filter(None, settings))
    return inherited | QUIET | ({"PYTORCH_CUDA_ALLOC_CONF": alloc_conf} if alloc_conf else {})


def replaced_variables() -> tuple[str, ...]:
    """Which variables of the user's shell the worker does not get."""
    return tuple(name for name in DECIDED if name in os.environ)
