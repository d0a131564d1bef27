"""The phantom as torch, nvidia-ml-py and other processes see it."""

import pytest
from phantom_process import run, run_script

from qmem.catalogue import all_gpus, find_gpu
from qmem.errors import UnsupportedError
from qmem.phantom import describe

pytestmark = pytest.mark.libraries

GIB = 2**30
MIB = 2**20


@pytest.fixture(scope="module", params=["", "expandable_segments:True"], ids=["segments", "expandable"])
def seen(request):
    return run_script("device.py", "rtx-4090", 22 * GIB, PYTORCH_CUDA_ALLOC_CONF=request.param)


def test_torch_sees_the_card_of_the_catalogue_with_the_capacity_that_was_asked_for(seen):
    card = find_gpu("rtx-4090")
    assert seen["properties"] == [f"{card.name} (phantom)", list(card.capability), card.sm_count, 22 * GIB]


def test_allocation_counters_and_the_snapshot_agree(seen):
    assert seen["allocated"] == seen["snapshot_active"] == 100 * MIB
    assert seen["reserved"] == 100 * MIB


def test_memory_history_records_what_was_allocated(seen):
    assert "alloc" in seen["history"]
    assert {"segment_alloc", "segment_map"} & set(seen["history"])


def test_out_of_memory_is_retried_observed_and_told_as_on_a_card(seen):
    assert seen["ooms"] == 1
    assert seen["retries"] >= 1
    assert seen["observed"] == [22 * GIB]
    assert "Tried to allocate 22.00 GiB. GPU 0 has a total capacity of 22.00 GiB" in seen["message"]


def test_pinned_memory_is_counted_apart(seen):
    is_pinned, n_bytes = seen["pinned"]
    assert is_pinned
    assert n_bytes >= 3 * MIB


def test_small_copies_arrive(seen):
    assert seen["copied"] == [0, 1, 2, 3, 4]


def test_the_device_holds_what_torch_reserved_and_the_prior_of_the_context(seen):
    prior = find_gpu("rtx-4090").context_prior.n_bytes
    assert seen["context_bytes"] == (prior.low + prior.high) // 2
    assert seen["used"] == seen["device_bytes"] + seen["context_bytes"]


def test_nvml_says_the_same_in_this_process_and_in_another(seen):
    mine = [seen["pid"], seen["used"]]
    assert seen["nvml"] == {"used": seen["used"], "processes": [mine]}
    assert seen["nvml_elsewhere"]["name"].endswith("(phantom)")
    assert seen["nvml_elsewhere"]["processes"] == [mine]


def test_what_is_freed_leaves_the_device(seen):
    assert seen["device_bytes_after"] <= seen["device_bytes"] - 100 * MIB


@pytest.mark.parametrize("gpu", [gpu for gpu in all_gpus() if not gpu.not_modelled], ids=lambda gpu: gpu.id)
def test_every_nvidia_card_of_the_catalogue_can_be_described(gpu):
    device = describe(gpu)
    assert device.name == f"{gpu.name} (phantom)"
    assert device.total_bytes == gpu.total_bytes
    assert device.context_bytes > 0


def test_a_card_that_is_not_nvidias_is_refused_with_the_reason():
    with pytest.raises(UnsupportedError, match=r"AMD Instinct MI300X cannot be simulated: ROCm builds"):
        describe(find_gpu("mi300x"))


def test_two_devices_have_each_their_own_bytes():
    program = (
        "from qmem import phantom; from qmem.catalogue import find_gpu\n"
        "device = phantom.load(find_gpu('l4'), devices=2)\n"
        "import torch; held = torch.empty(1 << 25, device='cuda:1')\n"
        "print(torch.cuda.device_count(), *device.stats().device_bytes)"
    )
    assert run("-c", program).stdout == f"2 0 {1 << 27}\n"
