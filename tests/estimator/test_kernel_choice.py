"""The kernel choices against the libraries' own functions."""

import ast
import functools
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qmem.estimator.kernel_choice import cublas_workspace_bytes, uses_fused_gemm_4bit

GPUS = {
    "P100": (6, 0, 56), "V100": (7, 0, 80), "Xavier": (7, 2, 8), "T4": (7, 5, 40), "A100": (8, 0, 108),
    "A30": (8, 0, 56), "RTX 3090": (8, 6, 82), "A10": (8, 6, 72), "Orin": (8, 7, 16), "RTX 4090": (8, 9, 128),
    "L4": (8, 9, 58), "L40S": (8, 9, 142), "H100": (9, 0, 132), "H100 PCIe": (9, 0, 114), "B200": (10, 0, 148),
    "B300": (10, 3, 160), "Thor": (11, 0, 20), "RTX 5090": (12, 0, 170), "RTX 5060": (12, 0, 30),
    "GB10": (12, 1, 48), "unknown": (13, 0, 160),
}  # fmt: skip
WIDTHS = (64, 576, 1024, 1536, 2048, 4096, 5120, 8192, 12288, 14336, 17408, 151936)
ROWS = (1, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17, 23, 24, 32, 33, 48, 49, 64, 65, 96, 97, 128, 129, 192, 193, 256,
        257, 320, 321, 384, 385, 512, 513, 1024, 1536, 1537, 4096)  # fmt: skip
DTYPES = ("bf16", "fp16", "fp32")


@functools.cache
def library_dispatch():
    """bitsandbytes' own kernel of ``gemm_4bit`` for CUDA, compiled from its installed file.

    The file cannot be imported without a GPU, so the functions that choose are taken from it as they stand.  Only
    their surroundings are replaced: the device query by the tested device, the two ways to compute by their names.
    """
    torch = pytest.importorskip("torch")
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tree = ast.parse((Path(bitsandbytes.__file__).parent / "backends/cuda/ops.py").read_text())
    wanted = [node for node in tree.body if is_choice(node)]
    for node in wanted:
        node.decorator_list = []
    (cap,) = (node for node in ast.walk(tree) if assigns(node, "_gemm_4bit_custom_max_m") and node.value.value > 1000)
    (floor,) = (node for node in tree.body if assigns(node, "_GEMM_4BIT_CUSTOM_FLOOR_M"))
    names = {node.name: node for node in wanted}
    names["_"].name = "dispatch"
    device = SimpleNamespace(props=None)
    namespace = {
        "torch": torch, "warn": warnings.warn, "Optional": __import__("typing").Optional,
        "Sequence": __import__("collections.abc").abc.Sequence, "_gpu_dispatch_props": lambda _: device.props,
        "_dequant_linear_fallback": lambda *_, **__: False, "_gemm_4bit_kernel_impl": lambda *_: True,
    }  # fmt: skip
    exec(compile(ast.Module([floor, cap, *wanted], []), "ops.py", "exec"), namespace)  # noqa: S102
    namespace["_gemm_4bit_use_custom_fn"] = namespace["_gemm_4bit_use_custom_cuda"]
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

    def choice(capability, sms, dtype, *product):
        m, n, k, block_size = (*product, 64)[:4]
        device.props = (sms, *capability)
        rows = SimpleNamespace(shape=(m, k), numel=lambda: m * k, dtype=kinds[dtype], device=SimpleNamespace(index=0))
        return namespace["dispatch"](rows, None, (n, k), None, block_size, "nf4")

    return choice


def is_choice(node):
    """The function that chooses, and the registered CUDA kernel that asks it."""
    if not isinstance(node, ast.FunctionDef):
        return False
    registered = any("bitsandbytes::gemm_4bit'" in ast.unparse(item) for item in node.decorator_list)
    return node.name == "_gemm_4bit_use_custom_cuda" or (node.name == "_" and registered)


def assigns(node, name):
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name


@pytest.mark.libraries
@pytest.mark.parametrize("gpu", GPUS)
def test_the_fused_kernel_is_chosen_as_bitsandbytes_chooses_it_over_a_dense_grid(gpu):
    *capability, sms = GPUS[gpu]
    choice = library_dispatch()
    wrong = [
        (dtype, m, n, k)
        for dtype in DTYPES
        for n in WIDTHS
        for k in WIDTHS
        for m in ROWS
        if uses_fused_gemm_4bit(tuple(capability), sms, dtype, m, n, k) is not choice(capability, sms, dtype, m, n, k)
    ]
    assert wrong == []


@pytest.mark.libraries
@pytest.mark.parametrize("capability", sorted({(major, minor) for major, minor, _ in GPUS.values()}))
def test_the_choice_turns_where_bitsandbytes_turns(capability):
    choice = library_dispatch()
    cards = [sms for *own, sms in GPUS.values() if tuple(own) == capability]
    wrong = [
        (sms, m, n, k)
        for sms in (cards[0], EDGES_OF)
        for n, k in weights_at_the_edges(sms)
        for m in ROWS
        if uses_fused_gemm_4bit(capability, sms, "fp16", m, n, k, 32)
        is not choice(capability, sms, "fp16", m, n, k, 32)
    ]
    assert wrong == []


EDGES_OF = 120
"""A number of multiprocessors that every fraction of a wave divides, so that equality is met."""


def weights_at_the_edges(sms):
    """Weights on both sides of the fractions of a wave, widths, and proportions that the tiers compare with."""
    waves = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 5, 3 / 4, 4 / 5, 1, 2, 3)
    edges = {36, 48, 64, 128, 200} | {round(wave * sms) for wave in waves}
    for blocks in sorted({edge + step for edge in edges for step in (-1, 0, 1)} - {-1, 0}):
        n = blocks * 64
        turns = {n // 2, n, n * 2, n * 3, 704, 1024, sms * 320 // blocks // 32 * 32, 4 * 1024 * 1024 // n // 32 * 32}
        for k in sorted({turn + step for turn in turns for step in (-32, 0, 32)}):
            if k > 0:
                yield n, k


@pytest.mark.libraries
@settings(max_examples=500, deadline=None)
@given(
    capability=st.sampled_from([(a, b) for a, b, _ in GPUS.values()]),
    sms=st.integers(1, 200),
    dtype=st.sampled_from(DTYPES),
    product=st.tuples(
        st.one_of(st.sampled_from(ROWS), st.integers(1, 2000)), st.integers(1, 20_000), st.integers(1, 700)
    ),
)
def test_the_fused_kernel_is_chosen_as_bitsandbytes_chooses_it_for_any_weight(capability, sms, dtype, product):
    m, n, k_blocks = product
    weight = (capability, sms, dtype, m, n, k_blocks * 32, 32)
    assert uses_fused_gemm_4bit(*weight) is library_dispatch()(*weight)


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore:inner dimension")
@given(
    block_size=st.sampled_from((32, 64, 128, 256, 512, 1024, 2048, 4096)),
    m=st.integers(1, 600),
    k=st.integers(1, 9000),
)
@example(block_size=64, m=1, k=100)
def test_an_unaligned_inner_dimension_is_dequantized_as_bitsandbytes_does(block_size, m, k):
    weight = ((8, 0), 108, "bf16", m, 4096, k, block_size)
    assert uses_fused_gemm_4bit(*weight) is library_dispatch()(*weight)
    assert k % block_size == 0 or not uses_fused_gemm_4bit(*weight)


def test_both_answers_occur_on_every_calibrated_card():
    for capability, sms in (((7, 5), 40), ((8, 0), 108), ((8, 6), 82), ((8, 9), 128), ((9, 0), 132), ((12, 0), 170)):
        answers = {uses_fused_gemm_4bit(capability, sms, "fp16", m, 17408, 5120) for m in (16, 2048)}
        assert answers == {True, False}


@pytest.mark.parametrize(
    ("capability", "n_bytes"),
    [
        ((7, 0), 8_519_680), ((7, 5), 8_519_680), ((8, 0), 8_519_680), ((8, 6), 8_519_680), ((8, 7), 8_519_680),
        ((8, 9), 8_519_680), ((9, 0), 33_554_432), ((10, 0), 33_554_432), ((10, 3), 33_554_432),
        ((11, 0), 33_554_432), ((12, 0), 33_554_432), ((12, 1), 33_554_432), ((13, 0), 8_519_680),
    ],
)  # fmt: skip
def test_the_cublas_workspace_is_what_torch_allocated_on_a_simulated_card(capability, n_bytes):
    # torch 2.14.1+cu130: memory_allocated() over its first product, less the result.
    assert cublas_workspace_bytes(capability) == n_bytes
