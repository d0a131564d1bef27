"""``qmem snapshot``: a stored snapshot as every form, at every width, and one line for what is no snapshot."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

STORED = Path(__file__).parent.parent / "snapshot" / "golden" / "out-of-memory.pickle"
FILE = str(STORED)
MIB = 1 << 20


@pytest.fixture
def page(qmem) -> str:
    answer = qmem("snapshot", FILE)
    assert (answer.code, answer.err) == (0, "")
    return answer.out


def amounts(page: str, label: str) -> list[int]:
    """Thousandths of the first line with this label."""
    line = next(line for line in page.splitlines() if line.startswith(f"{label} "))
    return [round(float(number) * 1000) for number in re.findall(r"\d+\.\d{3}", line)]


def test_the_page_answers_the_questions(page: str) -> None:
    assert "Fragmentation decided it: 314.33 MiB were reserved and unallocated" in page
    assert "With its own settings the replay reserves what was recorded, byte for byte" in page
    flat = " ".join(page.split())
    assert "expandable_segments:True: 78.00 MiB less reserved at the peak; the request that failed is served." in flat


@pytest.mark.parametrize("top", ["1", "3", "100"])
def test_printed_rows_add_up_to_their_totals(qmem, top: str) -> None:
    page = qmem("snapshot", FILE, "--top", top).out
    table = page.split("held by")[1].split("By the innermost")[0]
    rows = [re.findall(r"<?\d+\.\d{3}", line) for line in table.split("requested")[0].splitlines()]
    peaks = [0 if row[0].startswith("<") else round(float(row[0]) * 1000) for row in rows if row]
    assert sum(peaks) == amounts(page, "requested")[0]
    for column in range(3):
        at = {name: amounts(page, name)[column] for name in ("requested", "rounding", "allocated", "cache", "reserved")}
        assert at["requested"] + at["rounding"] == at["allocated"]
        assert at["allocated"] + at["cache"] == at["reserved"]


def test_json_has_whole_bytes_and_a_schema_version(qmem) -> None:
    found = json.loads(qmem("snapshot", FILE, "--json").out)
    assert found["schema_version"] == 1
    assert found["shortage"]["fragmentation_bytes"] == 110 * MIB
    assert [moment["when"] for moment in found["moments"]] == ["peak", "out of memory", "end"]
    for moment in found["moments"]:
        uses = [holder["uses"][moment["when"]] for holder in found["holders"] if moment["when"] in holder["uses"]]
        assert sum(use["n_bytes"] for use in uses) == moment["requested_bytes"]


@pytest.mark.parametrize("form", ["table", "markdown", "json", "csv"])
def test_every_form_goes_to_stdout_or_to_a_file(qmem, tmp_path: Path, form: str) -> None:
    if form == "csv":
        pytest.importorskip("pandas")
    shown = qmem("snapshot", FILE, "--format", form)
    assert (shown.code, shown.err) == (0, "")
    assert qmem("snapshot", FILE, "--format", form, "-o", str(tmp_path / "out")) == (0, "", "")
    assert (tmp_path / "out").read_text() == shown.out


def test_csv_has_a_line_for_every_moment_holder_and_segment(qmem) -> None:
    pytest.importorskip("pandas")
    found = json.loads(qmem("snapshot", FILE, "--json").out)
    rows = list(csv.DictReader(io.StringIO(qmem("snapshot", FILE, "--format", "csv").out)))
    kinds = [row["record"] for row in rows]
    assert kinds.count("moment") == len(found["moments"])
    assert kinds.count("holder") == sum(len(holder["uses"]) for holder in found["holders"])
    assert kinds.count("segment") == len(found["fragmentation"]["segments"])
    assert sum(int(row["free_bytes"]) for row in rows if row["record"] == "segment") == 329_600_000


@pytest.mark.parametrize("width", [80, 120, 200])
def test_lines_fit_the_terminal_and_lose_no_digit(qmem, monkeypatch, width: int, page: str) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    wide = qmem("snapshot", FILE).out
    assert max(len(line.rstrip()) for line in wide.splitlines()) <= width
    for label in ("requested", "allocated", "reserved", "all"):
        assert amounts(wide, label) == amounts(page, label)


def test_a_pipe_and_an_ascii_stdout_get_plain_signs(qmem_process) -> None:
    answer = qmem_process("snapshot", FILE, PYTHONIOENCODING="ascii")
    assert (answer.code, answer.err) == (0, "")
    assert "\x1b" not in answer.out
    assert "?" not in answer.out


def test_stdin_is_a_file_too() -> None:
    command = [sys.executable, "-m", "qmem", "snapshot", "-", "--json"]
    done = subprocess.run(command, input=STORED.read_bytes(), capture_output=True, check=True)
    assert json.loads(done.stdout)["shortage"]["n_failed"] == 1


def test_other_settings_are_replayed_in_the_order_in_which_they_are_given(qmem) -> None:
    asked = ["max_split_size_mb:64", "roundup_power2_divisions:8", "expandable_segments:True"]
    flags = [word for conf in asked for word in ("--alloc-conf", conf)]
    replays = json.loads(qmem("snapshot", FILE, "--json", *flags).out)["replays"]
    assert [run["settings"] for run in replays] == ["default", "expandable_segments:True", *asked[:2]]


def test_a_memory_fraction_is_of_the_card_that_is_named(qmem) -> None:
    conf = "per_process_memory_fraction:0.05,garbage_collection_threshold:0.5"
    refused = qmem("snapshot", FILE, "--alloc-conf", conf)
    assert refused.code == 2
    assert "name it with --gpu" in refused.err
    replays = json.loads(qmem("snapshot", FILE, "--json", "--alloc-conf", conf, "--gpu", "rtx-4090").out)["replays"]
    assert replays[-1]["peak_reserved_bytes"] <= 0.05 * 24 * (1 << 30)


def test_holders_are_grouped_by_module_on_request(qmem) -> None:
    out = qmem("snapshot", FILE, "--by", "module").out
    assert "project/train.py " in out
    assert "project/train.py:" not in out


BAD_FILES = {
    "empty": (b"", "it is no pickle"),
    "text": (b"hello", "it is no pickle"),
    "code": (b"cos\nsystem\n(S'false'\ntR.", "it is no pickle"),
    "newer code": (b"\x80\x04\x8c\x02os\x8c\x06system\x93." + b" " * 300, "STACK_GLOBAL"),
    "another pickle": (b"\x80\x04}.", "it has no segments"),
    "cut": (STORED.read_bytes()[:5000], "it ends after 5,000 bytes"),
}


@pytest.mark.parametrize(("content", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_gets_one_line_that_names_it(qmem, tmp_path: Path, content: bytes, says: str) -> None:
    bad = tmp_path / "bad.pickle"
    bad.write_bytes(content)
    answer = qmem("snapshot", str(bad))
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert str(bad) in answer.err
    assert says in answer.err
    in_json = qmem("snapshot", str(bad), "--json")
    assert (in_json.code, json.loads(in_json.out)["error"]["code"]) == (2, "usage")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "missing argument 'FILE'"),
        (["no-such-file.pickle"], "no-such-file.pickle: cannot be read: No such file or directory"),
        (["."], "cannot be read: Is a directory"),
        ([FILE, "--device", "7"], "the snapshot has nothing of device 7; it has device 0"),
        ([FILE, "--device", "-1"], "--device"),
        ([FILE, "--top", "0"], "--top"),
        ([FILE, "--top", "3", "--json"], "contradictory: --top and --format json"),
        ([FILE, "--by", "moon"], "'moon' is not one of"),
        ([FILE, "--gpu", "rtx-9999"], "no GPU is called 'rtx-9999'"),
        ([FILE, "--gpu", "rtx-4090"], "--gpu counts for a memory fraction in --alloc-conf only"),
        ([FILE, "--alloc-conf", "no_such_key:1"], "no setting 'no_such_key'"),
        ([FILE, "--alloc-conf", "max_split_size_mb:2"], "torch takes 20 or more here"),
        ([FILE, "--format", "pdf"], "'pdf' is not one of"),
    ],
)
def test_a_bad_call_gets_one_line(qmem, arguments: list[str], says: str) -> None:
    answer = qmem("snapshot", *arguments)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert says in answer.err
