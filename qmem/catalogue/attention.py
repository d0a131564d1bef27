"""The attention that a family runs with where nobody asks for one; what it is, ``qmem.estimator`` knows.

Source: transformers 5.23.0, ``PreTrainedModel._supports_sdpa`` of each family's class with a head: where it is false,
``from_pretrained`` without ``attn_implementation`` takes eager attention (``_check_and_adjust_attn_implementation``).
A test asks the installed classes.
"""

from qmem.catalogue.find import find_model
from qmem.job import Job

EAGER_ONLY = ("gemma2", "gpt_oss", "gptj", "mpt")
"""Families that transformers does not run with sdpa: two cap their scores or add sinks, two have no such code."""


def with_usual_attention(job: Job) -> tuple[Job, str]:
    """A job that names no attention with the one that transformers takes, and a sentence if it is not the default.

    Raises:
        UsageError: the model is not found, or its config cannot be read.
    """
    family = find_model(job.model).config.get("model_type")
    if family not in EAGER_ONLY:
        return job, ""
    return job.replace(attention="eager"), f"attention: eager, since transformers does not run {family} with sdpa"
