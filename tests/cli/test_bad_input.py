"""Every bad input: exit code 2 and one clear line on stderr, in JSON mode the same as an object on stdout."""

import json
from pathlib import Path

import pytest

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip

FLAGS = (
    (["no-such-model-9"], "nearest: "),
    ([""], "no model is named"),
    ([], "no model is named"),
    (["Qwen/Qwen3-14B-AWQ"], "AWQ"),
    (["unsloth/Qwen3-14B-FP8"], "FP8"),
    (["Qwen3-0.6B", "--rank", "0"], "rank is 0"),
    (["Qwen3-0.6B", "--rank", "-3"], "rank is -3"),
    (["Qwen3-0.6B", "--rank", "100000"], "100000"),
    (["Qwen3-0.6B", "--rank", "1" * 5000], "rank"),
    (["Qwen3-0.6B", "--batch", "0"], "batch is 0"),
    (["Qwen3-0.6B", "--seq", "0"], "seq is 0"),
    (["Qwen3-0.6B", "--targets", "no_such_proj"], "no_such_proj"),
    (["Qwen3-0.6B", "--targets", "("], "("),
    (["Qwen3-0.6B", "--targets", r"zz.*"], "zz"),
    (["Qwen3-0.6B", "--method", "full", "--quant", "nf4"], "method full"),
    (["Qwen3-0.6B", "--method", "lora", "--quant", "nf4"], "method lora"),
    (["Qwen3-0.6B", "--quant", "none"], "quant is none"),
    (["Qwen3-0.6B", "--amp", "--no-amp"], "--amp/--no-amp is given more than once"),
    (["Qwen3-0.6B", "--gpu", "t4", "--gpu", "l4"], "--gpu is given more than once"),
    (["Qwen3-0.6B", "--gpu", "rtx-9999"], "no GPU is called 'rtx-9999'"),
    (["Qwen3-0.6B", "--json", "--explain", "logits"], "contradictory: --json and --explain"),
    (["Qwen3-0.6B", "--rule-of-thumb", "--gpu", "t4"], "contradictory: --rule-of-thumb and --gpu"),
    (["Qwen3-0.6B", "--params", "14e9"], "--params counts for the rule of thumb only"),
    (["--rule-of-thumb", "--params", "nan"], "--params is nan"),
    (["--rule-of-thumb", "--params", "inf"], "--params is inf"),
    (["--rule-of-thumb", "--params", "0.5"], "--params is 0.5"),
    (["--rule-of-thumb", "--params", "many"], "'many' is not a valid float"),
    (["--rule-of-thumb"], "no model is named"),
    (["Qwen3-0.6B", "--set", "no_such_fact=yes"], "no_such_fact"),
    (["Qwen3-0.6B", "--set", "reentrant=perhaps"], "reentrant"),
    (["Qwen3-0.6B", "--set", "rank=4"], "it has a flag: --rank"),
    (["Qwen3-0.6B", "--stack", "no-such-stack"], "no-such-stack"),
    (["Qwen3-0.6B", "--set", "alloc_conf=no_such_key:1"], "no_such_key"),
    (["Qwen3-0.6B", "--set", "world_size=8"], "only one GPU is modelled yet"),
    (["Qwen3-0.6B", "--optimizer", "adamw"], "'adamw' is not one of"),
    (["Qwen3-0.6B", "--explain", "no such kind"], "no such kind"),
    (["Qwen3-0.6B", "--job", "no-such-file.toml"], "no-such-file.toml: No such file or directory"),
    (["Qwen3-0.6B", "--phantom", "a100-80"], "there is no option '--phantom'"),
    (["gpt-j-6b", "--attention", "sdpa"], "gptj"),
)


def check_refusal(qmem, arguments: list[str], says: str) -> None:
    """One line on stderr, nothing on stdout, code 2; the same words in the object that --json prints."""
    answer = qmem("estimate", *arguments)
    assert answer.code == 2
    assert ("--json" in arguments) == bool(answer.out)
    assert answer.err.startswith("qmem: ")
    assert answer.err.count("\n") == 1
    assert says in answer.err
    assert "Traceback" not in answer.err
    if "--json" not in arguments:
        in_json = qmem("estimate", "--json", *arguments)
        assert (in_json.code, in_json.out.count("\n")) == (2, 1)
        refusal = json.loads(in_json.out)["error"]
        assert refusal.keys() == {"code", "message", "hint"}
        assert refusal["code"] in {"usage", "unsupported"}


@pytest.mark.parametrize(("arguments", "says"), FLAGS, ids=[" ".join(case[0])[:60] for case in FLAGS])
def test_a_bad_flag_gets_one_line(qmem, arguments: list[str], says: str) -> None:
    check_refusal(qmem, arguments, says)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "config.json"),
        ("[]", "config.json"),
        ("\xff", "config.json"),
        ("{}", "model_type"),
        (json.dumps({**CONFIG, "model_type": "no_such_type"}), "no_such_type"),
        (json.dumps({**CONFIG, "hidden_size": None}), "hidden_size"),
        (json.dumps({**CONFIG, "hidden_size": "big"}), "hidden_size"),
        (json.dumps({**CONFIG, "num_hidden_layers": 0}), "num_hidden_layers"),
        (json.dumps({**CONFIG, "num_hidden_layers": -1}), "num_hidden_layers"),
        (json.dumps({**CONFIG, "vocab_size": 1.5}), "vocab_size"),
        (json.dumps({name: value for name, value in CONFIG.items() if name != "hidden_size"}), "hidden_size"),
        (json.dumps({**CONFIG, "model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Model"}}), "remote code"),
        ("[" * 100_000, "config.json"),
    ],
)
def test_a_bad_config_gets_one_line(qmem, tmp_path: Path, config: str, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(config.encode("latin-1"))
    check_refusal(qmem, [str(path)], says)
    check_refusal(qmem, [str(tmp_path)], says)


def test_the_config_of_these_tests_is_a_good_one(qmem, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert qmem("estimate", str(tmp_path)).code == 0


@pytest.mark.parametrize("text", ["rank = ", "rank = 'x'", "no_such_field = 1", "grad-accum = 2", "rank = 0"])
def test_a_bad_job_file_gets_one_line(qmem, tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    check_refusal(qmem, ["Qwen3-0.6B", "--job", str(path)], "rank is 0" if text == "rank = 0" else "job.toml: ")
