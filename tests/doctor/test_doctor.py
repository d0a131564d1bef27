"""What ``qmem doctor`` finds out: on this machine, on a phantom one, and from what a driver may say."""

import json
import os
import subprocess
import sys

import pytest

from qmem.catalogue import find_gpu
from qmem.cli.doctor import page
from qmem.doctor import examine
from qmem.doctor.ask import Driver, GpuSeen, Nvml, Torch, ask
from qmem.doctor.environment import NEW_NAME, NO_CACHING, OLD_NAME, allocator_problems, allocator_variables, is_wsl
from qmem.doctor.examine import device_problems
from qmem.doctor.libraries import extras, installed, libraries
from qmem.phantom import availability, describe


def doctor(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "qmem", "doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80", **environment}
    )


def test_the_whole_answer_is_one_screen_and_exit_code_0() -> None:
    done = doctor()
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"qmem        {installed('qmem-planner')}, Python ")
    assert "yes         qmem estimate" in lines


def test_json_has_the_same_findings() -> None:
    found = json.loads(doctor("--json").stdout)
    assert found["schema_version"] == 1
    assert found["abilities"][0] == {"name": "qmem estimate", "can": True, "why_not": None}
    assert {extra["name"] for extra in found["extras"]} == {"profile", "trl", "hub", "table", "plots"}
    assert {library["name"] for library in found["libraries"]} >= {"torch", "transformers", "peft", "bitsandbytes"}


@pytest.mark.libraries
def test_the_build_of_torch_is_told_by_torch_itself() -> None:
    torch = pytest.importorskip("torch")
    health = examine()
    assert health.torch.version == torch.__version__
    assert health.torch.cuda == torch.version.cuda


@pytest.mark.libraries
@pytest.mark.skipif(not availability().can_run, reason=availability().why)
def test_a_machine_with_two_cards_is_described_by_its_driver_nvml_and_torch() -> None:
    card = describe(find_gpu("a100-80"), devices=2)
    found = json.loads(doctor("--json", **card.environment()).stdout)
    assert [gpu["name"] for gpu in found["driver"]["gpus"]] == [card.name] * 2
    first = found["driver"]["gpus"][0]
    assert (first["total_bytes"], first["compute_capability"]) == (card.total_bytes, "8.0")
    assert first["concurrent_managed_access"] is True
    assert found["nvml"]["why_not"] is None
    assert found["torch"]["gpus"] == [card.name] * 2
    assert card.name in " ".join(doctor(**card.environment()).stdout.split())


def test_settings_in_the_environment_that_contradict_each_other_are_named_with_what_to_do() -> None:
    done = doctor(**{NEW_NAME: "expandable_segments:True", OLD_NAME: "max_split_size_mb:128"})
    assert done.returncode == 0
    assert f"{NEW_NAME} and {OLD_NAME} are both set and differ" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({NEW_NAME: "expandable_segments:True", OLD_NAME: "expandable_segments:False"}, "are both set and differ"),
        ({OLD_NAME: "expandable_segments:True,max_split_size_mb:128"}, "use one of the two"),
        ({OLD_NAME: "garbage_collection_threshold:0.8"}, "does nothing without a memory limit"),
        ({NEW_NAME: "no_such_key:1"}, "torch's allocator has no setting 'no_such_key'"),
        ({OLD_NAME: "backend:cudaMallocAsync"}, "cudaMallocAsync is not modelled"),
        ({NO_CACHING: "1"}, "reserved memory says nothing"),
    ],
)
def test_allocator_settings_that_do_harm_are_named(variables: dict[str, str], says: str) -> None:
    (problem,) = allocator_problems(variables)
    assert says in problem
    assert allocator_variables({**variables, "HOME": "/"}) == variables


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {OLD_NAME: "expandable_segments:True"},
        {NEW_NAME: "max_split_size_mb:64"},
        {NEW_NAME: "expandable_segments:True, pinned_free_catch_all:True",
         OLD_NAME: "pinned_free_catch_all:True,expandable_segments:True"},
    ],
)  # fmt: skip
def test_settings_that_agree_are_no_problem(variables: dict[str, str]) -> None:
    assert allocator_problems(variables) == ()


def test_wsl_is_told_by_its_kernel(tmp_path) -> None:
    release = tmp_path / "osrelease"
    release.write_text("5.15.167.4-microsoft-standard-WSL2\n")
    assert is_wsl(str(release))
    release.write_text("6.8.0-45-generic\n")
    assert not is_wsl(str(release))
    assert not is_wsl(str(tmp_path / "absent"))


A100 = GpuSeen(name="NVIDIA A100", total_bytes=80 * 2**30, compute_capability="8.0", concurrent_managed_access=True)
TORCH = Torch(version="2.14.1", cuda="13.0", gpus=("NVIDIA A100",))


@pytest.mark.parametrize(
    ("driver", "nvml", "torch", "says"),
    [
        (Driver(cuda="12.2", gpus=(A100,)), Nvml(), Torch(version="2", cuda="13.0"), "the driver runs up to 12.2"),
        (Driver(gpus=(A100,)), Nvml(why_not="Insufficient Permissions"), TORCH, "NVML does not answer (Insufficient"),
        (Driver(gpus=(A100,)), Nvml(gpus=(GpuSeen(name="NVIDIA A100", mig=True),)), TORCH, "MIG is on"),
        (Driver(gpus=(GpuSeen(name="RTX", concurrent_managed_access=False),)), Nvml(), TORCH, "managed access is off"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_on_a_machine_with_a_gpu_is_named(driver, nvml, torch, says) -> None:
    (problem,) = device_problems(driver, nvml, torch)
    assert says in problem


def test_a_healthy_machine_has_no_problem() -> None:
    assert device_problems(Driver(gpus=(A100,)), Nvml(gpus=(GpuSeen(name="A100", mig=False),)), TORCH) == ()
    assert device_problems(Driver(why_not="no driver"), Nvml(why_not="no library"), Torch(why_not="none")) == ()


def test_every_stack_library_is_listed_with_the_versions_it_was_checked_with() -> None:
    from qmem.catalogue.stacks import resolve_stack, stack_names
    from qmem.job import Job

    listed = {library.name: library.checked for library in libraries()}
    for stack in stack_names():
        for name, version in resolve_stack(Job(model="m", stack=stack)).versions.items():
            assert version in listed[name]


def test_a_question_that_the_probe_does_not_know_is_an_answer_and_no_crash() -> None:
    assert ask(["no such question"])["no such question"]["why_not"] == "KeyError: 'no such question'"


WITH_VERSIONS = """
from importlib import metadata
told, real = {versions}, metadata.version
def version(name):
    if told.get(name, "real") is None:
        raise metadata.PackageNotFoundError(name)
    return told.get(name) or real(name)
metadata.version = version
from qmem.doctor.libraries import extras
for extra in extras():
    print(extra.name, *extra.missing, extra.install, sep="|")
"""


@pytest.mark.parametrize(
    ("versions", "line"),
    [
        ({"pandas": None}, 'table|pandas>=2.0|pip install "qmem-planner[table]"'),
        ({"pandas": "1.5.3"}, 'table|pandas>=2.0|pip install "qmem-planner[table]"'),
        ({"pandas": "2.0"}, 'table|pip install "qmem-planner[table]"'),
        ({"pandas": "10.1.0rc1"}, 'table|pip install "qmem-planner[table]"'),
    ],
)
def test_an_extra_names_what_it_misses_and_the_line_that_installs_it(versions, line) -> None:
    program = WITH_VERSIONS.format(versions=versions)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert line in done.stdout.splitlines()


def test_extras_are_those_of_the_distribution_without_the_developers() -> None:
    assert {extra.name for extra in extras()} == {"profile", "trl", "hub", "table", "plots"}


def test_the_page_of_any_health_ends_with_what_can_be_done() -> None:
    health = examine()
    lines = page(health).splitlines()
    for able in health.abilities:
        assert any(line.startswith(f"{'yes' if able.can else 'no':12}{able.name}") for line in lines)
