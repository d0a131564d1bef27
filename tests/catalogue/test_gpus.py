"""The catalogue of GPUs: plausible sizes, sources, and what a typed name means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.catalogue import COMMON_GPUS, all_gpus, find_gpu
from qmem.catalogue.gpus import _file
from qmem.errors import UsageError
from qmem.units import GIB, MIB

GPUS = st.sampled_from(all_gpus())


def test_the_cards_people_fine_tune_on_are_there() -> None:
    ids = {gpu.id for gpu in all_gpus()}
    assert len(ids) == len(all_gpus()) >= 30
    asked = "rtx-3060 rtx-3090 rtx-4090 rtx-5090 t4 l4 a10 a40 l40s rtx-a6000 rtx-6000-ada rtx-pro-6000 v100-32"
    assert {*asked.split(), "a100-40", "a100-80", "h100", "h200", "b200", "gh200-96", "mi300x"} <= ids


def test_every_figure_names_its_counter_and_source() -> None:
    for gpu in all_gpus():
        assert gpu.counter in _file().counters, gpu.id
        assert gpu.source, gpu.id
        assert gpu.sm_source, gpu.id


def test_cuda_reports_less_than_the_marketing_size_but_most_of_it() -> None:
    for gpu in all_gpus():
        assert 0.9 < gpu.total_bytes / (gpu.nominal_gib * GIB) < 1, gpu.id


def test_a_figure_agrees_with_the_text_it_was_read_from() -> None:
    for gpu in all_gpus():
        quoted = {"deviceQuery": f"({gpu.total_bytes} bytes)", "torch": f"total_memory={gpu.total_bytes // MIB}MB",
                  "llama.cpp": f"VRAM: {gpu.total_bytes // MIB} MiB", "mixbench": f"{gpu.total_bytes // MIB} MB",
                  "torch OOM": f"{gpu.total_bytes / GIB + 0.005:.2f} GiB", "cuDeviceTotalMem": f"{gpu.total_bytes}",
                  "sibling": ""}[gpu.counter]  # fmt: skip
        assert quoted in gpu.source, gpu.id


def test_a_sibling_stands_in_only_where_it_is_said() -> None:
    for gpu in all_gpus():
        if gpu.counter == "sibling":
            assert gpu.unsure_fields == ("total_bytes",), gpu.id


@pytest.mark.parametrize(
    ("name", "capability", "sms"), [("t4", (7, 5), 40), ("l4", (8, 9), 58), ("b200", (10, 0), 148)]
)
def test_capability_and_multiprocessors(name: str, capability: tuple[int, int], sms: int) -> None:
    assert (find_gpu(name).capability, find_gpu(name).sm_count) == (capability, sms)


def test_the_context_is_a_prior_in_an_interval_with_a_source() -> None:
    ada, hopper = find_gpu("rtx-4090").context_prior, find_gpu("h100").context_prior
    assert ada is not None
    assert hopper is not None
    assert (ada.n_bytes.low, ada.n_bytes.high) == (100 * MIB, 500 * MIB)
    assert (hopper.n_bytes.low, hopper.n_bytes.high) == (300 * MIB, 700 * MIB)
    assert "prior" in ada.source
    assert "prior" in hopper.source


def test_a_card_that_is_not_modelled_claims_neither_capability_nor_context() -> None:
    (amd,) = (gpu for gpu in all_gpus() if gpu.not_modelled)
    assert (amd.id, amd.gfx, amd.capability, amd.context_prior) == ("mi300x", "gfx942", None, None)


def test_the_row_of_common_cards_grows() -> None:
    sizes = [find_gpu(name).nominal_gib for name in COMMON_GPUS]
    assert sizes == sorted(sizes)
    assert {8, 12, 16, 24, 32, 40, 48, 80, 141} == set(sizes)
    assert tuple(find_gpu(name).id for name in COMMON_GPUS) == COMMON_GPUS


@given(GPUS, st.data())
def test_case_blanks_hyphens_and_maker_make_no_difference(gpu, data) -> None:
    separator = data.draw(st.sampled_from(["-", " ", "_", ""]))
    maker = data.draw(st.sampled_from(["", "NVIDIA ", "NVIDIA GeForce ", "nvidia-"]))
    name = maker + gpu.id.replace("-", separator)
    assert find_gpu(data.draw(st.sampled_from([name.upper(), name.lower()]))) == gpu


@pytest.mark.parametrize(
    ("name", "meant"),
    [("4090", "rtx-4090"), ("RTX 4090", "rtx-4090"), ("a100-80gb", "a100-80"), ("A100-SXM4-80GB", "a100-80"),
     ("NVIDIA H100 80GB HBM3", "h100"), ("A10G", "a10g"), ("3080", "rtx-3080"), ("RTX PRO 6000", "rtx-pro-6000"),
     ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx-4070-ti-super")],
)  # fmt: skip
def test_people_spell_cards_in_many_ways(name: str, meant: str) -> None:
    assert find_gpu(name).id == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [("a100", "a100-40 or a100-80"), ("V100", "v100-16 or v100-32"), ("4060 Ti", "-8 or rtx-4060-ti-16")],
)
def test_a_name_of_two_sizes_says_which_were_meant(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"{name} can mean .*{meant}"):
        find_gpu(name)


def test_an_unknown_card_offers_the_nearest_three() -> None:
    with pytest.raises(UsageError, match="no GPU is called 'rtx-9090'") as error:
        find_gpu("rtx-9090")
    offered = error.value.hint.removeprefix("nearest: ").removesuffix(" (qmem gpus)").split(", ")
    assert len(set(offered)) == 3
    assert "rtx-4090" in offered
