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
    assert job("m") == Job(model="m")
    assert (job("m").quant, job("m").amp, job("m").adapter_dtype) == (None, None, None)


def test_every_flag_reaches_its_field() -> None:
    made = job(
        "m",
        *("--method", "qlora", "--quant", "fp4", "--no-double-quant", "--dtype", "fp16"),
        *("--rank", "16", "--alpha", "32", "--dropout", "0.1", "--targets", "q_proj,v_proj", "--adapter-dtype", "bf16"),
        *("--batch", "2", "--grad-accum", "4", "--seq", "512", "--no-checkpointing", "--optimizer", "adamw_torch"),
        *("--attention", "eager", "--loss", "chunked", "--compute-dtype", "fp16", "--amp"),
        *("--stack", "plain", "--expandable-segments"),
    )
    assert made == Job(
        model="m",
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
    assert job("m", *(word for text in settings for word in ("--set", text))) == Job(
        model="m",
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
    path.write_text("model = 'filed'\nrank = 4\nseq = 128\nfacts = {reentrant = 'yes', cast_norms = 'no'}")
    made = job("--job", str(path), "--rank", "16", "--set", "cast_norms=fp32")
    assert made == Job(model="filed", rank=16, seq=128, facts={"reentrant": "yes", "cast_norms": "fp32"})
    assert job("named", "--job", str(path)).model == "named"


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
        (["m", "--rank", "8", "--rank", "16"], "--rank is given more than once"),
        (["m", "--amp", "--no-amp"], "--amp/--no-amp is given more than once"),
        (["m", "--gpu", "t4", "--gpu", "l4"], "--gpu is given more than once"),
        (["m", "--set", "a=1", "--set", "a=2"], "--set a is given more than once"),
        (["m", "--set", "reentrant"], "--set 'reentrant' is not FACT=VALUE"),
        (["m", "--set", "=yes"], "is not FACT=VALUE"),
        (["m", "--set", "rank=8"], "--set does not take 'rank'; it has a flag: --rank"),
        (["m", "--set", "double_quant=no"], "it has a flag: --double-quant/--no-double-quant"),
        (["m", "--set", "model=x"], "name the model as an argument"),
        (["m", "--set", "facts=x"], "set each fact by itself"),
        (["m", "--set", "dora=perhaps"], "dora is 'perhaps', but must be yes or no"),
        (["m", "--set", "block_size=big"], "block_size is 'big', but must be a whole number"),
        (["m", "--set", "block_size=100"], "block_size is 100"),
        (["m", "--set", "bias=some"], "bias is 'some', but must be one of none, all, lora_only"),
        (["m", "--set", "world_size=2"], "world_size is 2, but only one GPU is modelled yet"),
        (["m", "--rank", "0"], "rank is 0, but must be at least 1"),
        (["m", "--rank", "8.5"], "'8.5' is not a valid integer"),
        (["m", "--quant", "nf3"], "'nf3' is not one of 'nf4', 'fp4', 'int8', 'none'"),
        (["m", "--method", "full", "--quant", "nf4"], "method full keeps its base in bf16, but quant is nf4"),
        (["m", "--method", "qlora", "--quant", "none"], "but quant is none"),
        (["m", "--dropout", "1"], "dropout is 1.0"),
        (["m", "--dropout", "nan"], "dropout is nan"),
        (["m", "--targets", ","], "targets is empty"),
        (["m", "--targets", ""], "targets is empty"),
        (["m", "n"], "unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], says: str) -> None:
    with pytest.raises((QmemError, click.ClickException)) as refusal:
        job(*arguments)
    message = refusal.value.format_message() if isinstance(refusal.value, click.ClickException) else str(refusal.value)
    assert says in message
