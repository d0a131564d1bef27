"""Dtypes by name: how many bytes an element takes."""

from qmem.errors import UsageError

DTYPE_BYTES = {
    "fp64": 8, "float64": 8, "double": 8,
    "fp32": 4, "float32": 4, "float": 4,
    "bf16": 2, "bfloat16": 2,
    "fp16": 2, "float16": 2, "half": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "int64": 8, "long": 8,
    "int32": 4, "int": 4,
    "int16": 2, "short": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of an element, by torch's names (without ``torch.``) and the short ones of a job (torch 2.14.1)."""


def dtype_bytes(name: str) -> int:
    """Bytes of one element: 2 for ``bf16``, ``bfloat16`` and ``torch.bfloat16``.

    Raises:
        UsageError: no dtype is called so; the nearest known is named.
    """
    n_bytes = DTYPE_BYTES.get(name.removeprefix("torch."))
    if n_bytes is None:
        from qmem.catalogue.names import nearest  # noqa: PLC0415 - only on the way to an error

        raise UsageError(f"no dtype is called {name!r}", hint=f"nearest: {nearest(name, DTYPE_BYTES, 1)[0]}")
    return n_bytes
