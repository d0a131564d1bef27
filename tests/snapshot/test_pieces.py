"""Ranges of addresses, names of holders, words of settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.allocator import parse_settings
from qmem.snapshot.frames import NO_PYTHON, NOT_RECORDED, Holders
from qmem.snapshot.ranges import Ranges
from qmem.snapshot.settings import described

TORCH = "/venv/lib/python3.11/site-packages/torch/nn/modules/linear.py"
MODEL = "/venv/lib/python3.11/site-packages/transformers/models/qwen3/modeling_qwen3.py"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 20))))
def test_ranges_are_sets_of_addresses(moves):
    ranges, addresses = Ranges(), set()
    for adds, start, n_bytes in moves:
        touched = set(range(start, start + n_bytes))
        if adds:
            assert ranges.add(start, n_bytes) == (not addresses & touched)
            addresses |= touched
        else:
            assert ranges.remove(start, n_bytes) == (touched <= addresses)
            addresses -= touched
        assert ranges.n_bytes == len(addresses)
        assert {address for start, end in ranges for address in range(start, end)} == addresses
        assert all(ranges.holds(address) == (address in addresses) for address in range(85))
        assert all(end < start for end, start in zip(ranges.ends, ranges.starts[1:], strict=False))


def frame(path, line=7, name="forward"):
    return {"filename": path, "line": line, "name": name}


@pytest.mark.parametrize(
    ("frames", "by_line", "by_module"),
    [
        ([frame(TORCH), frame(MODEL), frame("/home/me/train.py")],
         "transformers/models/qwen3/modeling_qwen3.py:7 forward, by torch/nn/modules/linear.py:7 forward",
         "transformers/models/qwen3/modeling_qwen3.py"),
        ([frame("/home/me/tuning/train.py", 3, "<module>")], "tuning/train.py:3 <module>", "tuning/train.py"),
        ([frame("C:\\me\\tuning\\train.py")], "tuning/train.py:7 forward", "tuning/train.py"),
        ([frame(TORCH)], "torch/nn/modules/linear.py:7 forward", "torch/nn/modules/linear.py"),
        ([frame("/pytorch/aten/src/ATen/EmptyTensor.cpp"), frame("??"), frame("train.py")],
         "train.py:7 forward", "train.py"),
        ([frame("/pytorch/aten/src/ATen/EmptyTensor.cpp")], NO_PYTHON, NO_PYTHON),
        ([], NO_PYTHON, NO_PYTHON),
        (None, NOT_RECORDED, NOT_RECORDED),
        ([None, 3, {"filename": 4}], NO_PYTHON, NO_PYTHON),
    ],
)  # fmt: skip
def test_a_holder_is_the_innermost_line_outside_torch(frames, by_line, by_module):
    assert Holders("line").name(frames) == by_line
    assert Holders("module").name(frames) == by_module
    assert Holders("line").name(frames, "q_proj") == f"{by_line} [q_proj]"


@pytest.mark.parametrize(
    "text",
    [
        "expandable_segments:True",
        "max_split_size_mb:128,roundup_power2_divisions:4",
        "roundup_power2_divisions:[1:2,64:8,>:4],large_segment_size_mb:40,max_split_size_mb:64",
        "garbage_collection_threshold:0.6,per_process_memory_fraction:0.5,max_non_split_rounding_mb:64",
    ],
)
def test_settings_are_named_as_they_are_set(text):
    settings = parse_settings(text)
    assert parse_settings(described(settings)) == settings


def test_settings_that_nobody_set_are_the_default():
    assert described(parse_settings("")) == "default"
