"""``qmem estimate`` from end to end: what it prints, where, and with which exit code."""

import json
import re
from pathlib import Path

import pytest

from qmem.estimator import estimate
from qmem.job import Job
from qmem.ledger import from_json

JOB = ("Qwen2.5-0.5B", "--rank", "8", "--seq", "512")
SMALL = Job(model="Qwen2.5-0.5B", rank=8, seq=512)


def test_the_page_shows_the_headings_the_peak_and_a_row_of_cards(qmem) -> None:
    answer = qmem("estimate", *JOB)
    assert (answer.code, answer.err) == (0, "")
    for words in (
        "weights",
        "LoRA and AdamW",
        "activations",
        "buffers",
        "overhead",
        "rule of thumb",
        "total allocated",
    ):
        assert words in answer.out
    assert f"The peak is at the {estimate(SMALL).peak.moment}" in " ".join(answer.out.split())
    assert "T4" in answer.out
    assert "The same job by stack" in answer.out


def test_json_is_the_ledger_that_python_returns(qmem) -> None:
    answer = qmem("estimate", *JOB, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert from_json(answer.out) == estimate(SMALL)
    assert len(answer.out) < 300_000


def test_a_card_that_is_too_small_is_a_finding_and_only_where_it_is_named(qmem) -> None:
    large = ("Qwen2.5-72B", "--method", "lora")
    assert qmem("estimate", *large, "--gpu", "rtx-3090").code == 1
    assert qmem("estimate", *large, "--gpu", "rtx-3090", "--json").code == 1
    assert qmem("estimate", *large).code == 0
    fitting = qmem("estimate", *JOB, "--gpu", "a100-80")
    assert fitting.code == 0
    assert "A100-SXM4-80GB: fits" in fitting.out


def test_explain_prints_a_derivation(qmem) -> None:
    answer = qmem("estimate", *JOB, "--explain", "logits")
    assert (answer.code, answer.err) == (0, "")
    assert "151936" in answer.out or "151,936" in answer.out


def test_a_replay_tells_what_the_allocator_holds(qmem) -> None:
    quick, full = (json.loads(qmem("estimate", *JOB, "--json", *more).out) for more in ((), ("--replay",)))
    for ledger in (quick, full):
        assert ledger["peak"]["reserved_bytes"] >= ledger["peak"]["allocated_bytes"]
    counters = [{r["counter"] for r in ledger["readings"] if r["waterline"] == "reserved"} for ledger in (quick, full)]
    assert counters == [{"quick replay"}, {"full replay"}]


def test_a_trace_is_stored_whole(qmem, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert qmem("estimate", *JOB, "--trace", str(path)).code == 0
    trace = json.loads(path.read_text())
    alive = peak = 0
    for event in trace["events"]:
        alive += trace["sizes"][event] if event >= 0 else -trace["sizes"][~event]
        peak = max(peak, alive)
    assert peak == estimate(SMALL).peak.requested_bytes
    assert trace["schema_version"] == 1
    assert trace["label_table"][0].keys() == {"kind", "owner", "because"}


def test_a_trace_that_cannot_be_stored_is_said(qmem, tmp_path: Path) -> None:
    answer = qmem("estimate", *JOB, "--trace", str(tmp_path / "absent" / "trace.json"))
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "cannot write" in answer.err


def test_a_job_file_is_planned_and_flags_win(qmem, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("model = 'Qwen2.5-0.5B'\nrank = 64\nseq = 512\n")
    answer = qmem("estimate", "--job", str(path), "--rank", "8", "--json")
    assert from_json(answer.out) == estimate(SMALL)


def test_a_warning_stands_on_stderr_where_stdout_is_json(qmem) -> None:
    answer = qmem("estimate", "Qwen3-0.6B", "--seq", "50000", "--json")
    assert answer.code == 0
    assert re.search(r"^qmem: warning: .*50000.*40960", answer.err, re.MULTILINE)
    assert any("50000" in warning for warning in json.loads(answer.out)["warnings"])


@pytest.mark.parametrize(
    ("arguments", "weights", "total"),
    [
        (("--params", "14e9"), "7.09", "13.59 to 16.09"),
        (("Qwen3-14B",), "7.48", "13.98 to 16.48"),
        (("Qwen3-14B", "--no-double-quant"), "8.31", "14.81 to 17.31"),
    ],
)
def test_the_rule_of_thumb_alone(qmem, arguments: tuple[str, ...], weights: str, total: str) -> None:
    answer = qmem("estimate", "--rule-of-thumb", *arguments)
    assert (answer.code, answer.err) == (0, "")
    assert re.search(rf"^weights +{re.escape(weights)} ", answer.out, re.MULTILINE)
    assert re.search(rf"^total +{total} ", answer.out, re.MULTILINE)


def test_the_rule_of_thumb_works_for_families_that_are_not_walked(qmem) -> None:
    answer = qmem("estimate", "--rule-of-thumb", "falcon-7b", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["total"]["low"] > 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_is_served(qmem_process, encoding: str) -> None:
    for more in ((), ("--explain", "weights"), ("--rule-of-thumb",)):
        answer = qmem_process("estimate", *JOB, *more, PYTHONIOENCODING=encoding)
        assert (answer.code, answer.err) == (0, "")
        assert "?" not in answer.out
        assert max(map(len, answer.out.splitlines())) <= 80


def test_colours_come_where_they_are_forced_and_go_where_they_are_unwanted(qmem_process) -> None:
    assert "\x1b[" in qmem_process("estimate", *JOB, FORCE_COLOR="1").out
    assert "\x1b[3" not in qmem_process("estimate", *JOB, FORCE_COLOR="1", NO_COLOR="1").out
    assert "\x1b" not in qmem_process("estimate", *JOB).out


@pytest.mark.parametrize("columns", ["0", "7", "40", "200", "wide"])
def test_any_width_is_served(qmem_process, columns: str) -> None:
    answer = qmem_process("estimate", *JOB, COLUMNS=columns)
    assert (answer.code, answer.err) == (0, "")
    assert "total allocated" in " ".join(answer.out.split())


def test_a_family_without_sdpa_is_planned_with_eager_attention_and_says_so(qmem) -> None:
    answer = qmem("estimate", "gemma-2-2b", "--seq", "256", "--json")
    assert (answer.code, from_json(answer.out).job.attention) == (0, "eager")
    assert "eager, since transformers does not run gemma2 with sdpa" in answer.err
    asked = qmem("estimate", "gemma-2-2b", "--attention", "sdpa")
    assert (asked.code, asked.out) == (2, "")


def test_a_checkpoint_in_mxfp4_is_planned_as_its_16_bit_copy(qmem) -> None:
    answer = qmem("estimate", "gpt-oss-20b", "--seq", "256")
    assert answer.code == 0
    assert "stores MXFP4 weights; planned is a copy with 16-bit weights" in " ".join(answer.out.split())
