"""The job file: what it accepts, and the one line it answers for what it does not."""

from pathlib import Path

import pytest

from qmem.errors import UsageError
from qmem.job import Job, make_job, read_job_file

FULL = """
model = "Qwen3-14B"
method = "qlora"
rank = 16
dropout = 0.05
targets = ["q_proj", "v_proj"]
optimizer = "adamw_torch"
checkpointing = false
modules_to_save = ["lm_head"]

[facts]
reentrant = "yes"
"""


@pytest.fixture
def job_file(tmp_path: Path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "job.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def test_fields_stand_at_the_top_level(job_file) -> None:
    job = make_job(read_job_file(job_file(FULL)))
    assert job == Job(
        model="Qwen3-14B",
        rank=16,
        dropout=0.05,
        targets=("q_proj", "v_proj"),
        optimizer="adamw_torch",
        checkpointing=False,
        modules_to_save=("lm_head",),
        facts={"reentrant": "yes"},
    )


def test_fields_stand_in_a_job_table(job_file) -> None:
    assert read_job_file(job_file("[job]\nrank = 4\n[job.facts]\ncast_norms = 'fp32'")) == {
        "rank": 4,
        "facts": {"cast_norms": "fp32"},
    }


def test_only_the_fields_that_the_file_sets_come_back(job_file) -> None:
    assert read_job_file(job_file("seq = 512")) == {"seq": 512}


def test_a_contradiction_waits_for_the_flags_that_may_resolve_it(job_file) -> None:
    fields = read_job_file(job_file("quant = 'none'"))
    assert make_job({"model": "m", **fields, "method": "lora"}).method == "lora"
    with pytest.raises(UsageError, match="qlora trains an adapter on a quantized base"):
        make_job({"model": "m", **fields})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rank = ", r"job\.toml: not TOML: .*line 1, the end"),
        ("seq = 1\nrank = [", r"job\.toml: not TOML: .*line 2"),
        ("grad-accum = 4", r"job\.toml: a job has no field 'grad-accum'; did you mean grad_accum\?"),
        ("rnak = 4", r"did you mean rank\?"),
        ("zzzzzzzz = 4", r"its fields are model, method"),
        ("rank = 'eight'", r"job\.toml: rank is 'eight': Expected `int`, got `str`"),
        ("rank = 8.5", r"job\.toml: rank is 8\.5"),
        ("quant = 'nf3'", r"job\.toml: quant is 'nf3', but must be one of nf4, fp4, int8, none"),
        ("facts = 3", r"job\.toml: facts is 3: Expected `object`, got `int`"),
        ("job = 3", r"job\.toml: job is 3, but must be a table"),
        ("seq = 2\n[job]\nrank = 4", r"job\.toml: 'seq' stands beside the table \[job\]"),
        (b"\xff\xfe", r"job\.toml': not UTF-8 text at byte 0"),
        ("a = " + "[" * 100_000, r"job\.toml: not (TOML|a job)"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(job_file, text: str | bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        read_job_file(job_file(text))
    assert "\n" not in str(refusal.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml: No such file or directory"):
        read_job_file(str(tmp_path / "absent.toml"))
    with pytest.raises(UsageError, match="Is a directory"):
        read_job_file(str(tmp_path))
    with pytest.raises(UsageError, match="null byte"):
        read_job_file("job\0.toml")
