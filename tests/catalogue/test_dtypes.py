"""Bytes of an element, by every name a dtype has."""

import pytest

from qmem.catalogue import DTYPE_BYTES, dtype_bytes
from qmem.errors import UsageError


@pytest.mark.parametrize(("name", "n_bytes"), [("bf16", 2), ("torch.bfloat16", 2), ("float32", 4), ("uint8", 1)])
def test_a_dtype_is_known_by_its_names(name: str, n_bytes: int) -> None:
    assert dtype_bytes(name) == n_bytes


@pytest.mark.parametrize(("name", "nearest"), [("bflot16", "bfloat16"), ("fp31", "fp32"), ("torch.uint9", "uint8")])
def test_an_unknown_dtype_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"no dtype is called '{name}'; nearest: {nearest}"):
        dtype_bytes(name)


@pytest.mark.libraries
def test_the_sizes_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    sizes = {name: getattr(torch, name).itemsize for name in DTYPE_BYTES if hasattr(torch, name)}
    assert len(sizes) > 15
    assert sizes == {name: DTYPE_BYTES[name] for name in sizes}
