"""From flags to a job: only what the user set is handed on, and text becomes the field's type."""

from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.cli.command import VerbCommand
from qmem.cli.job_options import job_from_flags, job_parameters, read_targets
from qmem.errors import QmemError
from qmem.job import Job


def job(*arguments: str) -> Job:
    made: list[Job] = []

    def keep(**given: Any) -> None:
        made.append(job_from_flags(given))

    VerbCommand("verb", params=job_parameters(), callback=keep).main(list(arguments), "verb", standalone_mode=False)
    return made[0]


def test_without_flags_the_job_is_the_recipe_with_nothing_decided() -> None:
    assert job("Qwen3-0.6B") == Job(model="Qwen3-0.6B")
    assert (job("Qwen3-0.6B").quant, job("Qwen3-0.6B").amp, job("Qwen3-0.6B").adapter_dtype) == (None, None, None)


def test_every_flag_reaches_its_field() -> None:
    made = job(
        "Qwen3-0.6B",
        *("--method", "qlora", "--quant", "fp4", "--no-double-quant", "--dtype", "fp16"),
        *("--rank", "16", "--alpha", "32", "--dropout", "0.1", "--targets", "q_proj,v_proj", "--adapter-dtype", "bf16"),
        *("--batch", "2", "--grad-accum", "4", "--seq", "512", "--no-checkpointing", "--optimizer", "adamw_torch"),
        *("--attention", "eager", "--loss", "chunked", "--compute-dtype", "fp16", "--amp"),
        *("--stack", "plain", "--expandable-segments"),
    )
    assert made == Job(
        model="Qwen3-0.6B",
        quant="fp4",
        double_quant=False,
        dtype="fp16",
        rank=16,
        alpha=32,
        dropout=0.1,
        targets=("q_proj", "v_proj"),
        adapter_dtype="bf16",
        batch=2,
        grad_accum=4,
        seq=512,
        checkpointing=False,
        optimizer="adamw_torch",
        attention="eager",
        loss="chunked",
        compute_dtype="fp16",
        amp=True,
        stack="plain",
        expandable_segments=True,
        method="qlora",
    )


def test_set_takes_fields_without_a_flag_in_their_types_and_facts_as_text() -> None:
    settings = (
        "block_size=128", "quant_storage=bfloat16", "skip_modules=lm_head, gate", "modules_to_save=lm_head",
        "bias=all", "rslora=yes", "dora=True", "alloc_conf=max_split_size_mb:128,garbage_collection_threshold:0.6",
        "cast_norms=fp32", "reentrant=yes",
    )  # fmt: skip
    assert job("Qwen3-0.6B", *(word for text in settings for word in ("--set", text))) == Job(
        model="Qwen3-0.6B",
        block_size=128,
        quant_storage="bf16",
        skip_modules=("lm_head", "gate"),
        modules_to_save=("lm_head",),
        bias="all",
        rslora=True,
        dora=True,
        alloc_conf="max_split_size_mb:128,garbage_collection_threshold:0.6",
        facts={"cast_norms": "fp32", "reentrant": "yes"},
    )


def test_flags_win_over_the_file_and_facts_join(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("model = 'Qwen3-1.7B'\nrank = 4\nseq = 128\nfacts = {reentrant = 'yes', cast_norms = 'no'}")
    made = job("--job", str(path), "--rank", "16", "--set", "cast_norms=fp32")
    assert made == Job(model="Qwen3-1.7B", rank=16, seq=128, facts={"reentrant": "yes", "cast_norms": "fp32"})
    assert job("Qwen3-4B", "--job", str(path)).model == "Qwen3-4B"


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ("q_proj",)),
        (" q_proj , v_proj,", ("q_proj", "v_proj")),
        ("self_attn.q_proj", ("self_attn.q_proj",)),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("[qv]_proj", "[qv]_proj"),
        ("x{1,2}", "x{1,2}"),
    ],
)
def test_targets_are_a_word_names_or_a_regular_expression(text: str, targets: Any) -> None:
    assert read_targets(text) == targets


@given(st.lists(st.from_regex(r"[a-z_]+(\.[a-z_]+)?", fullmatch=True), min_size=1, max_size=5))
def test_names_of_targets_come_back_as_they_went_in(names: list[str]) -> None:
    assert read_targets(",".join(names)) == tuple(names)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no model is named"),
        (["Qwen3-0.6B", "--rank", "8", "--rank", "16"], "--rank is given more than once"),
        (["Qwen3-0.6B", "--amp", "--no-amp"], "--amp/--no-amp is given more than once"),
        (["Qwen3-0.6B", "--gpu", "t4", "--gpu", "l4"], "--gpu is given more than once"),
        (["Qwen3-0.6B", "--set", "a=1", "--set", "a=2"], "--set a is given more than once"),
        (["Qwen3-0.6B", "--set", "reentrant"], "--set 'reentrant' is not FACT=VALUE"),
        (["Qwen3-0.6B", "--set", "=yes"], "is not FACT=VALUE"),
        (["Qwen3-0.6B", "--set", "rank=8"], "--set does not take 'rank'; it has a flag: --rank"),
        (["Qwen3-0.6B", "--set", "double_quant=no"], "it has a flag: --double-quant/--no-double-quant"),
        (["Qwen3-0.6B", "--set", "model=x"], "name the model as an argument"),
        (["Qwen3-0.6B", "--set", "facts=x"], "set each fact by itself"),
        (["Qwen3-0.6B", "--set", "dora=perhaps"], "dora is 'perhaps', but must be yes or no"),
        (["Qwen3-0.6B", "--set", "block_size=big"], "block_size is 'big', but must be a whole number"),
        (["Qwen3-0.6B", "--set", "block_size=100"], "block_size is 100"),
        (["Qwen3-0.6B", "--set", "bias=some"], "bias is 'some', but must be one of none, all, lora_only"),
        (["Qwen3-0.6B", "--set", "world_size=2"], "world_size is 2, but only one GPU is modelled yet"),
        (["Qwen3-0.6B", "--rank", "0"], "rank is 0, but must be at least 1"),
        (["Qwen3-0.6B", "--rank", "8.5"], "'8.5' is not a valid integer"),
        (["Qwen3-0.6B", "--quant", "nf3"], "'nf3' is not one of 'nf4', 'fp4', 'int8', 'none'"),
        (["Qwen3-0.6B", "--method", "full", "--quant", "nf4"], "method full keeps its base in bf16, but quant is nf4"),
        (["Qwen3-0.6B", "--method", "qlora", "--quant", "none"], "but quant is none"),
        (["Qwen3-0.6B", "--dropout", "1"], "dropout is 1.0"),
        (["Qwen3-0.6B", "--dropout", "nan"], "dropout is nan"),
        (["Qwen3-0.6B", "--targets", ","], "targets is empty"),
        (["Qwen3-0.6B", "--targets", ""], "targets is empty"),
        (["Qwen3-0.6B", "n"], "unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], says: str) -> None:
    with pytest.raises((QmemError, click.ClickException)) as refusal:
        job(*arguments)
    message = refusal.value.format_message() if isinstance(refusal.value, click.ClickException) else str(refusal.value)
    assert says in message
