"""No outlier features on a phantom, where no activation has a value.

LLM.int8() (arXiv 2208.07339) multiplies columns of an input that hold an element of at least the threshold (6.0 by
default) in 16 bit, so how much memory a product takes depends on the input.  bitsandbytes looks for such columns where
it quantizes the input; there the answer is none.  It knows that one function and nothing of models.
"""

import functools
from typing import Any

WHY = (
    "no outlier features: no input of an 8-bit weight has an element of the threshold or more; "
    "each column that has one is kept and multiplied in 16 bit besides"
)


def assume_no_outliers(verdict: Any) -> None:
    """From now on bitsandbytes finds no outliers, by assumption of the readback guard's ``verdict``.

    A version of bitsandbytes that looks for them elsewhere is not answered: what it reads taints.
    """
    import bitsandbytes  # noqa: PLC0415

    functional: Any = bitsandbytes.functional
    quantize = getattr(functional, "int8_vectorwise_quant", None)
    if quantize is None:
        return

    @functools.wraps(quantize)
    def without_outliers(*arguments: Any, **keywords: Any) -> Any:
        with verdict.assuming_zeros(WHY):
            return quantize(*arguments, **keywords)

    functional.int8_vectorwise_quant = without_outliers
