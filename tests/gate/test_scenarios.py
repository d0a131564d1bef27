"""Reading scenarios: what a table may say, and what each mistake is called."""

from pathlib import Path

import pytest

from qmem.errors import UsageError
from qmem.gate.scenario import make_scenario, read_scenarios
from qmem.units import GIB


def test_scenarios_are_found_from_a_folder_below(project: Path) -> None:
    below = project / "src" / "deep"
    below.mkdir(parents=True)
    found = read_scenarios(below)
    assert found.folder == project
    assert list(found.by_name) == ["small", "tiny"]
    assert found.by_name["tiny"].budget == 8 * GIB
    assert found.by_name["small"].job.batch == 4


def test_qmem_toml_goes_before_pyproject(project: Path) -> None:
    (project / "qmem.toml").write_text('[scenarios.other]\nmodel = "Qwen/Qwen3-0.6B"\n')
    assert list(read_scenarios(project).by_name) == ["other"]


def test_without_scenarios_the_error_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no scenarios here; write for example \[tool\.qmem\.scenarios\.train\]"):
        read_scenarios(tmp_path)


def test_an_unknown_name_is_answered_with_those_that_are(project: Path) -> None:
    with pytest.raises(UsageError, match="there is no scenario 'smal'; there are small, tiny"):
        read_scenarios(project).chosen(("smal",))


def test_a_local_model_is_named_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    job = make_scenario("one", {"model": "model"}, tmp_path).job
    assert job is not None
    assert job.model == str(tmp_path / "model")


def test_a_command_is_split_as_a_shell_would(tmp_path: Path) -> None:
    table = {"command": "python 'my train.py' --rank 8", "instrument": "phantom", "device": "RTX 4090"}
    made = make_scenario("one", table, tmp_path)
    assert made.command == ("python", "my train.py", "--rank", "8")
    assert made.device == "rtx-4090"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "must be one of a job, a command and a call"),
        ({"model": "x", "command": "python t.py"}, "must be one of a job, a command and a call"),
        ({"command": "python t.py", "call": "a:b"}, "must be one of a job, a command and a call"),
        ({"command": "python t.py"}, "a command is run, not estimated"),
        ({"model": "Qwen/Qwen3-0.6B", "instrument": "phantom"}, "the phantom needs a device"),
        ({"model": "Qwen/Qwen3-0.6B", "instrument": "gpu", "device": "h100"}, "a real GPU is the one that is there"),
        ({"model": "Qwen/Qwen3-0.6B", "memory": "8 GiB"}, "memory changes a simulated card"),
        ({"model": "Qwen/Qwen3-0.6B", "steps": 1}, "steps is 1, but must be at least 2"),
        ({"model": "Qwen/Qwen3-0.6B", "steps": 5}, "an estimate runs no steps"),
        ({"model": "Qwen/Qwen3-0.6B", "waterline": "reserved"}, "waterline says what budget counts"),
        (
            {"model": "Qwen/Qwen3-0.6B", "budget": "8 GiB", "waterline": "device"},
            "an estimate has no device peak",
        ),
        ({"model": "Qwen/Qwen3-0.6B", "waterline": "device"}, "waterline says what budget counts"),
        ({"model": "Qwen/Qwen3-0.6B", "budget": "many"}, "not an amount of memory: 'many'"),
        ({"model": "Qwen/Qwen3-0.6B", "instrument": "guess"}, "instrument"),
        ({"model": "Qwen/Qwen3-0.6B", "rang": 8}, "a job has no field 'rang'"),
        ({"model": "Qwen/Qwen3-0.6B", "device": "h1000"}, "h1000"),
        ({"rank": 8}, "'rank' is no field of a scenario without a model"),
        ("text", "must be a table"),
    ],
)
def test_what_is_wrong_is_named(table: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make_scenario("one", table, tmp_path)


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "a/b"])
def test_a_name_must_be_able_to_name_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a file"):
        make_scenario(name, {"model": "Qwen/Qwen3-0.6B"}, tmp_path)


def test_the_error_names_file_and_table(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.qmem.scenarios.bad]\nmodel = "Qwen/Qwen3-0.6B"\nrank = 0\n')
    with pytest.raises(UsageError, match=r"pyproject\.toml: scenario bad: .*rank"):
        read_scenarios(project)
