"""``python -m qmem.phantom`` runs a script that knows nothing of it."""

import pytest
from phantom_process import run

pytestmark = pytest.mark.libraries

SCRIPT = """
import subprocess, sys, torch
print(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1], *sys.argv[1:])
if "child" not in sys.argv:
    subprocess.run([sys.executable, __file__, "child"], check=True)
    sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_a_script_and_its_children_run_on_the_card_and_the_exit_code_is_theirs(script):
    done = run("-m", "qmem.phantom", "--gpu", "rtx-4090", "--memory", "22GiB", "--", script, "--gpu", "mine")
    assert done.returncode == 7
    card = f"NVIDIA GeForce RTX 4090 (phantom) {22 * 2**30}"
    assert sorted(done.stdout.splitlines()) == [f"{card} --gpu mine", f"{card} child"]


def test_it_says_that_it_is_simulated(script):
    done = run("-m", "qmem.phantom", "--gpu", "l4", script)
    assert done.stderr.startswith("simulated: 1 x NVIDIA L4 (phantom), 21.99 GiB; values read from it are not true\n")


@pytest.mark.parametrize(
    ("gpu", "message"),
    [("rtx-4091", "Error: no GPU is called 'rtx-4091'"), ("mi300x", "Error: AMD Instinct MI300X cannot be simulated")],
)
def test_a_card_that_it_cannot_simulate_is_one_clear_line_and_exit_code_2(script, gpu, message):
    done = run("-m", "qmem.phantom", "--gpu", gpu, script)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_code_of_the_command_line_runs_too():
    done = run("-m", "qmem.phantom", "--gpu", "t4", "--", "-c", "import torch; print(torch.cuda.device_count())")
    assert done.stdout == "1\n"
