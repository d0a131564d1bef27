"""When a phantom would mislead, it is refused with the reason."""

import pytest
from phantom_process import run

pytestmark = pytest.mark.libraries

LOAD = "from qmem import phantom; from qmem.catalogue import find_gpu; phantom.load(find_gpu('a10'))"


def refusal(program):
    done = run("-c", program)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_second_phantom_in_one_process_is_refused():
    assert refusal(f"{LOAD}; phantom.load(find_gpu('l4'))") == (
        "qmem.errors.UnavailableError: this process has a phantom GPU already; use one process for each"
    )


def test_a_phantom_after_torch_is_refused():
    assert "torch is loaded already" in refusal(f"import torch; {LOAD}")


def test_more_devices_than_the_library_has_are_refused():
    assert "9 phantom devices were asked for; 1 to 8 are possible" in refusal(
        LOAD.replace("find_gpu('a10')", "find_gpu('a10'), devices=9")
    )


def test_a_guard_without_a_phantom_is_refused():
    program = "from qmem.phantom import guard; guard.watching().__enter__()"
    assert "this process has no phantom GPU" in refusal(program)


def test_two_guards_at_once_are_refused():
    program = f"{LOAD}; from qmem.phantom import guard\nwith guard.watching():\n  guard.watching().__enter__()"
    assert "the readback guard watches already" in refusal(program)


def test_an_activation_cannot_be_declared_to_be_a_number():
    program = (
        f"{LOAD}; import torch; from qmem.phantom import guard\n"
        "with guard.watching() as verdict:\n  verdict.declare(torch.randn(100, device='cuda'), 'loss')"
    )
    assert "a tensor of (100,) torch.float32 on cuda:0 is not followed" in refusal(program)


def test_operations_of_libraries_that_are_not_there_fail_loudly():
    program = f"{LOAD}; import torch; torch.linalg.eigh(torch.ones(4, 4, device='cuda'))"
    assert "RuntimeError" in refusal(program)


def test_memory_cannot_be_shared_with_another_process():
    program = f"{LOAD}; import torch; torch.ones(4, device='cuda').untyped_storage()._share_cuda_()"
    assert "operation not supported (by the phantom GPU)" in run("-c", program).stderr
