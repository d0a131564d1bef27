r"""Which pickles are read at all: those that can hold numbers, text, lists, dicts and pairs of numbers, and no more.

It owns the words (opcodes) of the pickle language that a snapshot is written with, by ``pickle.dump`` (protocols 2 to
5) or by torch's C++ writer, and goes through a file word by word before it is unpickled.  It knows nothing of what the
words say.

Refused by this are all globals, calls and persistent names, so that nothing of the file can run; tuples in tuples,
whose hash would overflow the C stack; and memo numbers from 2**22 on, for which ``pickle`` would make a table of that
length.  Lists and dicts may be as deep as they like: nothing that reads a snapshot follows them down.
Source of the words: CPython's ``Modules/_pickle.c`` and ``pickletools``.
"""

import re

from qmem.errors import UsageError

_WHOLE = rb"K.|M..|J.{4}|\x8a(?:" + b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(10)) + b")"
"""BININT1, BININT2, BININT, and LONG1 of up to 9 bytes."""
_TEXT = rb"\x8c(?:" + b"|".join(b"\\x%02x.{%d}" % (n, n) for n in range(256)) + b")"
"""SHORT_BINUNICODE: a byte that says how many follow."""
_FRAME = rb"\x95.{8}"
"""FRAME, which may stand between any two words."""
_WORDS = (
    rb"(?:(?:" + _WHOLE + rb")(?:" + _FRAME + rb")?){2}\x86",  # a pair: TUPLE2 of two whole numbers
    rb"h.|j.{4}|q.|r..[\x00-\x3f]\x00",  # BINGET, LONG_BINGET, BINPUT, LONG_BINPUT
    _WHOLE,
    rb"[}\](\x94suae]",  # EMPTY_DICT, EMPTY_LIST, MARK, MEMOIZE, SETITEM, SETITEMS, APPEND, APPENDS
    _TEXT,
    rb"[N\x88\x89.]|G.{8}|\x80[\x02-\x05]|" + _FRAME,  # None, True, False, STOP, BINFLOAT, PROTO
)
_LONG_TEXT = ord("X")
"""BINUNICODE: four bytes that say how many follow."""
_FIRST_BYTES = frozenset(b"KMJ\x8a\x8chjqr}](\x94suaeN\x88\x89.G\x80\x95X\x86")
_AT_ONCE = 4096
"""Words that are matched in one go, so that the matcher's memory stays small."""


def check_alphabet(content: bytes) -> None:
    """Go through a pickle word by word.

    Raises:
        UsageError: a word that no snapshot needs, a file that ends too early, or bytes after its end.
    """
    if content[:1] != b"\x80":
        raise UsageError("not a memory snapshot: it is no pickle of protocol 2 or later")
    match = re.compile(b"(?:%s){1,%d}" % (b"|".join(_WORDS), _AT_ONCE), re.DOTALL).match
    at, end = 0, len(content)
    while at < end:
        found = match(content, at)
        if found is not None:
            at = found.end()
        elif content[at] == _LONG_TEXT and at + 5 <= end:
            at += 5 + int.from_bytes(content[at + 1 : at + 5], "little")
        else:
            raise _refusal(content, at)
    if at > end or content[-1:] != b".":
        raise _cut_short(end)


def _refusal(content: bytes, at: int) -> UsageError:
    if content[at] in _FIRST_BYTES and len(content) - at < 1 << 8:
        return _cut_short(len(content))
    from pickletools import opcodes  # noqa: PLC0415 - only where a file is refused

    word = next((word for word in opcodes if word.code == chr(content[at])), None)
    name = f"the pickle word {word.name}" if word else f"the byte {content[at]:#04x}, no word of a pickle"
    return UsageError(
        f"not a memory snapshot: at byte {at} stands {name}; a snapshot holds numbers, text, lists and dicts only, and "
        "nothing else is read from a pickle",
        hint="make it with torch.cuda.memory._dump_snapshot",
    )


def _cut_short(length: int) -> UsageError:
    return UsageError(
        f"not a whole memory snapshot: it ends after {length:,} bytes, in the middle",
        hint="copy it again, or dump it again",
    )
