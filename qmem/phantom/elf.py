"""Names in a shared library's dynamic symbol table, read from the file itself: no nm, no readelf, no loading.

It knows 64-bit little-endian ELF as the System V ABI lays it out, and nothing about CUDA.
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
DYNAMIC_SYMBOLS = 11
"""Section type SHT_DYNSYM."""

UNDEFINED = 0
"""Section index SHN_UNDEF: the symbol is wanted from another library."""


class DynamicSymbols(NamedTuple):
    """What a library defines for others and what it wants from them."""

    defined: frozenset[str]
    wanted: frozenset[str]


class _Section(NamedTuple):
    kind: int
    offset: int
    n_bytes: int
    link: int


def dynamic_symbols(path: Path) -> DynamicSymbols:
    """The names in ``path``'s dynamic symbol table; both empty for a file that is not an ELF library."""
    defined: set[str] = set()
    wanted: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        sections = _sections(image)
        for table in sections:
            if table.kind != DYNAMIC_SYMBOLS:
                continue
            names = sections[table.link]
            text = image[names.offset : names.offset + names.n_bytes]
            symbols = image[table.offset : table.offset + table.n_bytes]
            for at, _, _, section, _, _ in SYMBOL.iter_unpack(symbols):
                name = text[at : text.index(b"\0", at)].decode()
                (wanted if section == UNDEFINED else defined).add(name)
    return DynamicSymbols(frozenset(defined), frozenset(wanted))


def _sections(image: mmap.mmap) -> list[_Section]:
    if image[:6] != b"\x7fELF\x02\x01":
        return []
    (start,) = struct.unpack_from("<Q", image, 0x28)
    entry, count = struct.unpack_from("<HH", image, 0x3A)
    headers = (SECTION_HEADER.unpack_from(image, start + i * entry) for i in range(count))
    return [_Section(header[1], header[4], header[5], header[6]) for header in headers]
