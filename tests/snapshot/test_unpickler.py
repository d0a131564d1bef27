"""What anybody may hand in: nothing of it runs, nothing of it crashes, and it is answered with one sentence."""

import datetime as dt
import pickle
import struct
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from snapshots import GOLDENS, content, half_full, tree

from qmem.errors import UsageError
from qmem.snapshot import examine
from qmem.snapshot.alphabet import check_alphabet
from qmem.snapshot.reading import parse_snapshot

SMALL = pickle.dumps(half_full())


def is_read_or_refused(made):
    """Whether it is read; what is refused is refused with one line, and anything else is raised."""
    try:
        examine(parse_snapshot(made))
    except UsageError as error:
        return "\n" in error.message
    return True


class Command:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("thing", [Command(), print, dt.date(2026, 1, 1), {1, 2}, b"bytes", 1 << 4000, ((1,), 2)])
def test_what_is_no_number_text_list_or_dict_is_refused(thing, protocol):
    made = pickle.dumps({"segments": thing}, protocol)
    with pytest.raises(UsageError, match="not a memory snapshot"):
        parse_snapshot(made)


def test_a_refusal_names_the_word_and_where_it_stands():
    with pytest.raises(UsageError, match=r"at byte \d+ stands the pickle word STACK_GLOBAL"):
        parse_snapshot(pickle.dumps({"segments": print}, 4))


@given(st.binary(max_size=400))
@example(b"")
@example(b"\x80\x04.")
@example(b"\x80\x02]q\x00.")
@example(b"\x80\x04}\x94h\x00.")
def test_random_bytes_are_refused(made):
    assert not is_read_or_refused(made)
    assert not is_read_or_refused(b"\x80\x04" + made)


@pytest.mark.parametrize("name", GOLDENS)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_short_is_refused(name, share):
    whole = content(name)
    with pytest.raises(UsageError, match=r"whole memory snapshot|not a memory snapshot"):
        parse_snapshot(whole[: int(len(whole) * share)])


@given(st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(data):
    changed = bytearray(SMALL)
    for at in data.draw(st.lists(st.integers(0, len(SMALL) - 1), min_size=1, max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    is_read_or_refused(bytes(changed))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**71), 2**71) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.data())
def test_any_value_at_any_place_is_read_or_refused(data):
    """One value of a snapshot, at any depth, is replaced by anything."""
    made = half_full()
    at = made
    while isinstance(at, (dict, list)) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if data.draw(st.booleans()) or not isinstance(at[key], (dict, list)) or not at[key]:
            at[key] = data.draw(ANYTHING)
            break
        at = at[key]
    is_read_or_refused(pickle.dumps(made))


def test_tuples_in_tuples_are_refused_before_they_can_be_hashed():
    """A tuple a million deep as the key of a dict: its hash would overflow the C stack."""
    deep = b"\x80\x04}" + b"K\x00K\x00\x86" + b"K\x00\x86" * 1_000_000 + b"K\x00s."
    with pytest.raises(UsageError, match="TUPLE2"):
        parse_snapshot(deep)


def test_lists_in_lists_are_no_danger():
    with pytest.raises(UsageError, match="not a memory snapshot"):
        parse_snapshot(b"\x80\x04" + b"]" * 1_000_000 + b"a" * 999_999 + b".")


def test_a_memo_number_that_would_take_all_memory_is_refused():
    with pytest.raises(UsageError, match="LONG_BINPUT"):
        parse_snapshot(b"\x80\x02}r" + struct.pack("<I", 0xFFFF_FFF0) + b"." + b" " * 300)


def test_a_text_longer_than_the_file_is_refused_without_its_memory():
    tracemalloc.start()
    with pytest.raises(UsageError, match="whole memory snapshot"):
        parse_snapshot(b"\x80\x02X" + struct.pack("<I", 0xFFFF_FFF0) + b"short.")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_lists_that_are_named_more_often_than_written_are_refused():
    """A thousand segments with the same thousand blocks: a few kB that would be a million blocks."""
    blocks = [{"address": 0, "size": 512, "state": "inactive"}] * 1000
    one = {"address": 0, "total_size": 512_000, "allocated_size": 0, "active_size": 0, "segment_type": "large",
           "blocks": blocks}  # fmt: skip
    with pytest.raises(UsageError, match="cannot hold 1,001,000 blocks"):
        parse_snapshot(pickle.dumps({"segments": [one] * 1000}))


@pytest.mark.parametrize("name", GOLDENS)
def test_the_gate_lets_all_of_a_snapshot_through(name):
    whole = content(name)
    check_alphabet(whole)
    with pytest.raises(UsageError):
        check_alphabet(whole + b"}")


def test_a_segment_whose_blocks_do_not_add_up_is_refused():
    made = tree("late.pickle.xz")
    made["segments"][0]["blocks"].pop()
    with pytest.raises(UsageError, match="do not add up"):
        parse_snapshot(pickle.dumps(made))
