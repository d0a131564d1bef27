"""Configs from a disk: what is read, and the one line that each broken one gets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qmem.catalogue import find_model
from qmem.errors import UnsupportedError, UsageError

LLAMA = {"model_type": "llama", "hidden_size": 64}


@pytest.fixture
def config(tmp_path: Path):
    def write(content: object) -> str:
        path = tmp_path / "config.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    return write


def test_a_config_json_and_its_folder_mean_the_same(config) -> None:
    path = config(LLAMA)
    folder = str(Path(path).parent)
    assert find_model(path).config == find_model(folder).config == LLAMA
    assert (find_model(folder).id, find_model(folder).source) == (folder, path)
    assert find_model(folder).params_counted is None


def test_a_relative_folder_is_found(config, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(config(LLAMA)).parent
    monkeypatch.chdir(folder.parent)
    assert find_model(folder.name).config == LLAMA
    assert find_model(f"./{folder.name}").config == LLAMA


def test_a_folder_without_a_config_does_not_hide_a_model_of_its_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("gpt2").id == "openai-community/gpt2"


def test_infinity_is_read_as_transformers_reads_it(config) -> None:
    assert find_model(config(b'{"model_type": "nemotron_h", "limit": [0.0, Infinity]}')).config["limit"][1] > 1e300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no valid JSON: Expecting value .line 1, column 1"),
        (b"{", "no valid JSON: .*line 1"),
        (b'{"model_type": "llama",}', "no valid JSON"),
        (b"\xff\xfe\xfa", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "names no model_type"),
        (b'{"hidden_size": 64}', "names no model_type"),
        (b'{"model_type": null}', "names no model_type"),
        (b'{"model_type": ["llama"]}', "names no model_type"),
    ],
)
def test_a_broken_config_gets_one_clear_line(config, content: bytes, message: str) -> None:
    path = config(content)
    with pytest.raises(UsageError, match=message) as error:
        find_model(path)
    assert path in error.value.message
    assert "\n" not in str(error.value)


def test_an_unreadable_config_is_a_usage_error(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs a file that exists and cannot be read, for root too")
    with pytest.raises(UsageError, match="cannot be read"):
        find_model(_unreadable(tmp_path))


def _unreadable(folder: Path) -> str:
    """A file whose reading fails for every user: the memory of this process, from address 0."""
    link = folder / "config.json"
    link.symlink_to("/proc/self/mem")
    return str(link)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder .* has no config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere.json", "nowhere/"])
def test_a_path_that_leads_nowhere_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"there is no file or folder {name}"):
        find_model(name)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "compressed-tensors"])
def test_a_config_of_quantized_weights_is_refused_with_the_command_for_its_base(config, method: str) -> None:
    path = config({**LLAMA, "_name_or_path": "me/Llama-2-7b-hf-x", "quantization_config": {"quant_method": method}})
    with pytest.raises(UnsupportedError, match=f"stores {method.upper()} weights") as refusal:
        find_model(path)
    assert "--quant nf4" in refusal.value.hint


def test_the_base_of_quantized_weights_is_known_by_the_name_in_the_config(config) -> None:
    path = config({**LLAMA, "_name_or_path": "TheBloke/Llama-2-7B", "quantization_config": {"quant_method": "awq"}})
    with pytest.raises(UnsupportedError, match="qmem estimate meta-llama/Llama-2-7b-hf --quant nf4"):
        find_model(path)


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"load_in_4bit": True}]
)
def test_bitsandbytes_weights_are_fine_and_said(config, quantization: dict[str, object]) -> None:
    (note,) = find_model(config({**LLAMA, "quantization_config": quantization})).notes
    assert "bitsandbytes" in note


def test_a_config_that_asks_for_remote_code_is_refused(config) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    with pytest.raises(UnsupportedError, match=r"remote code .*model_type xverse"):
        find_model(config({"model_type": "xverse", "auto_map": auto_map}))
    with pytest.raises(UnsupportedError, match="never runs a model's code"):
        find_model(config({"model_type": "qwen", "auto_map": auto_map}))


@pytest.mark.parametrize("family", ["phi3", "falcon", "mpt"])
def test_a_family_that_transformers_has_by_now_needs_no_remote_code(config, family: str) -> None:
    found = find_model(config({"model_type": family, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}))
    assert not found.needs_remote_code


def test_reading_a_config_loads_no_heavy_library(config) -> None:
    program = (
        "import sys; from qmem.catalogue import find_model; "
        f"find_model({config(LLAMA)!r}); find_model('qwen3-14b'); "
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub', 'pandas', 'socket'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
