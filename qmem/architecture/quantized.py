"""Which linears bitsandbytes replaces when transformers loads a model.

It owns the rule of the library, not the bytes.  Source: transformers 5.23, ``quantizers/base.py``
(``get_keys_to_not_convert``, ``get_modules_to_not_convert``), ``quantizers/quantizers_utils.py``
(``should_convert_module``), ``integrations/bitsandbytes.py`` (``replace_with_bnb_linear``).
"""

import re

from qmem.architecture.architecture import Architecture, Linear
from qmem.errors import UsageError
from qmem.job import Job

_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


KEPT = {"t5": ("wo",)}
"""What a family keeps out of quantization, whatever is skipped (``_keep_in_fp32_modules``)."""


def quantized_modules(architecture: Architecture, job: Job, *, subclasses: bool = False) -> tuple[Linear, ...]:
    """The linears that are loaded in 4 or 8 bits; experts and routers that are parameters stay as they are.

    transformers 5 replaces modules whose class is exactly ``nn.Linear`` or ``Conv1D``: it leaves all of Falcon, whose
    linears are of a class derived from it, in 16 bits.  ``subclasses`` replaces those too, as transformers 4 did
    (4.48.1, ``integrations/bitsandbytes.py``).

    A list of modules to skip takes the place of the default (the head and what is tied to it) and does not add to it.
    A tied head is never among them: its weight is the embedding's, which is not quantized.

    Raises:
        UsageError: a name to skip is not a valid regular expression.
    """
    if job.effective_quant == "none":
        return ()
    skipped = (job.skip_modules or _kept_by_default(architecture)) + KEPT.get(architecture.family, ())
    pattern = _pattern(skipped)
    return tuple(
        linear
        for linear in architecture.linears
        if (linear.plain or subclasses)
        and not (pattern.match(linear.name) or linear.name.endswith(skipped))
        and not (architecture.tied_head and linear.name == architecture.head)
    )


def _kept_by_default(architecture: Architecture) -> tuple[str, ...]:
    """The output embedding, what is tied to it, and the module of the last parameter."""
    tied = (architecture.embedding,) if architecture.tied_head else ()
    return (architecture.head, *tied, architecture.parameters[-1].name.removesuffix(".weight"))


def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    try:
        return re.compile("|".join(f"(?:{name}){_BOUNDARY}" for name in names))
    except re.error as error:
        raise UsageError(f"skip_modules {names!r} hold no valid regular expressions: {error}") from error
