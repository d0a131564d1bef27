"""What the two streams survive: closed pipes, full disks, narrow encodings, files that cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qmem.cli.streams import write_file
from qmem.errors import UsageError


def test_a_reader_that_stops_reading_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "qmem", "models"], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qmem", "--help"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (3, b"qmem: the result cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("text", "plain"),
    [("2 ≤ 3 → 6", "2 <= 3 -> 6"), ("┏━┓│└", "+-+|+"), ("a…", "a..."), ("日本", "??")],
)
def test_signs_that_an_encoding_lacks_are_spelled_in_ascii(text: str, plain: str) -> None:
    program = f"from qmem.cli.streams import *; prepare_streams(); write_result({text!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert done.stdout.decode("ascii") == plain


def test_an_encoding_that_has_the_signs_keeps_them() -> None:
    program = "from qmem.cli.streams import *; prepare_streams(); write_result('2 ≤ 3 → 6')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    assert done.stdout.decode() == "2 ≤ 3 → 6"


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    target.write_text("old")
    write_file(str(target), b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["absent/trace.json", ".", "a\0b"])
def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_file(f"{tmp_path}/{name}", b"new")
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.parent.glob("*.part")) == []


def test_what_a_link_names_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_file(str(tmp_path / "link"), b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_plain_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_file(str(pipe), b"new")
    assert os.read(reading, 10) == b"new"
    os.close(reading)
    assert pipe.is_fifo()
