"""Stored tensors against the real libraries, tensor by tensor and to the byte."""

import json
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.estimator.storage import (
    bits_per_parameter,
    int8_weight,
    optimizer_shared,
    optimizer_state,
    quantization_shared,
    quantized_weight,
)
from qmem.job.job import BLOCK_SIZES, Optimizer

SHAPES = ((64, 64), (128, 576), (1024, 5120), (8, 8), (3, 7), (1, 1), (5, 5), (33, 65), (100, 130), (7, 1000),
          (333, 50), (255, 257), (1, 16384), (16385, 1))  # fmt: skip
STORAGES = ("uint8", "bf16", "fp16", "fp32")
OPTIMIZERS = Optimizer.__args__
GOLDEN = json.loads((Path(__file__).parent / "golden" / "optimizer_state.json").read_text())

elements_and_more = st.tuples(st.integers(1, 400_000), st.integers(0, 5_000))


def torch_dtypes():
    torch = pytest.importorskip("torch")
    return {
        "uint8": torch.uint8, "int8": torch.int8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
    }  # fmt: skip


def seen(tensor):
    """A real tensor as a piece shows it."""
    (name,) = (name for name, dtype in torch_dtypes().items() if dtype == tensor.dtype)
    return tuple(tensor.shape), name, tensor.nbytes


def said(pieces):
    return {piece.name: (piece.shape, piece.dtype, piece.n_bytes) for piece in pieces}


def real_4bit_weight(shape, quant, double_quant, block_size, quant_storage):
    """What ``Params4bit`` holds after it quantized on the CPU, before any forward."""
    torch = pytest.importorskip("torch")
    bnb = pytest.importorskip("bitsandbytes")
    parameter = bnb.nn.Params4bit(
        torch.randn(shape, dtype=torch.bfloat16), requires_grad=False, blocksize=block_size,
        compress_statistics=double_quant, quant_type=quant, quant_storage=torch_dtypes()[quant_storage],
    ).to("cpu")  # fmt: skip
    state = parameter.quant_state
    held = {"weight": parameter.data, "quant_map": state.code, "absmax": state.absmax}
    if double_quant:
        held |= {"offset": state.offset, "nested_absmax": state.state2.absmax, "nested_quant_map": state.state2.code}
    return {name: seen(tensor) for name, tensor in held.items()}


def fills_whole_elements(shape, quant_storage):
    """Whether the packed bytes are a multiple of the storage dtype's, without which the CPU backend refuses."""
    packed = (prod(shape) + 1) // 2
    return packed % {"uint8": 1, "bf16": 2, "fp16": 2, "fp32": 4}[quant_storage] == 0


def fills_at_least_two(shape, quant_storage):
    """The CPU backend also stumbles over a single packed byte."""
    return quant_storage == "uint8" or prod(shape) > 2


@pytest.mark.libraries
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_4bit_weight_holds_what_bitsandbytes_holds(shape, quant, double_quant):
    for quant_storage in STORAGES:
        if fills_whole_elements(shape, quant_storage) and fills_at_least_two(shape, quant_storage):
            pieces = quantized_weight(shape, quant, double_quant=double_quant, quant_storage=quant_storage)
            assert said(pieces) == real_4bit_weight(shape, quant, double_quant, 64, quant_storage)


@pytest.mark.libraries
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("shape", [(100, 130), (512, 1024), (33, 65)])
def test_every_block_size_holds_what_bitsandbytes_holds(shape, block_size):
    for double_quant in (True, False):
        pieces = quantized_weight(shape, "nf4", double_quant=double_quant, block_size=block_size)
        assert said(pieces) == real_4bit_weight(shape, "nf4", double_quant, block_size, "uint8")


@pytest.mark.libraries
@given(
    elements=st.integers(1, 100_000),
    block_size=st.sampled_from(BLOCK_SIZES),
    quant_storage=st.sampled_from(STORAGES),
)
def test_packed_data_and_absmax_have_the_shape_that_bitsandbytes_gives_on_a_gpu(elements, block_size, quant_storage):
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    weight = torch.empty(elements, dtype=torch.bfloat16, device="meta")
    packed, absmax = torch.ops.bitsandbytes.quantize_4bit(weight, block_size, "nf4", torch_dtypes()[quant_storage])
    pieces = quantized_weight(
        (elements,), "nf4", double_quant=False, block_size=block_size, quant_storage=quant_storage
    )
    assert said(pieces)["weight"] == seen(packed)
    assert said(pieces)["absmax"] == seen(absmax)


@pytest.mark.libraries
def test_the_code_of_double_quantization_is_cached_once_for_the_process():
    functional = pytest.importorskip("bitsandbytes").functional
    real_4bit_weight((64, 64), "nf4", double_quant=True, block_size=64, quant_storage="uint8")
    assert said(quantization_shared(double_quant=True)) == {k: seen(v) for k, v in functional.name2qmap.items()}
    assert quantization_shared(double_quant=False) == ()


@pytest.mark.libraries
@pytest.mark.parametrize("shape", SHAPES)
def test_an_int8_weight_holds_what_bitsandbytes_holds(shape):
    torch = pytest.importorskip("torch")
    bnb = pytest.importorskip("bitsandbytes")
    weight = bnb.nn.Int8Params(torch.randn(shape, dtype=torch.bfloat16), requires_grad=False).to("cpu")
    assert weight.CB.data_ptr() == weight.data_ptr()
    assert said(int8_weight(shape)) == {"CB": seen(weight.CB), "SCB": seen(weight.SCB)}


@pytest.mark.parametrize(("double_quant", "bits"), [(True, "4.127"), (False, "4.500")])
def test_bits_per_parameter_are_those_of_a_large_weight(double_quant, bits):
    pieces = quantized_weight((17408, 5120), "nf4", double_quant=double_quant)
    stored = sum(piece.n_bytes for piece in pieces if piece.name not in ("quant_map", "nested_quant_map", "offset"))
    assert f"{bits_per_parameter(double_quant=double_quant):.3f}" == bits
    assert stored * 8 == bits_per_parameter(double_quant=double_quant) * 17408 * 5120


@given(elements=st.integers(1, 10**9), block_size=st.sampled_from(BLOCK_SIZES))
def test_a_double_quantized_weight_adds_up_to_the_closed_formula(elements, block_size):
    blocks = (elements + block_size - 1) // block_size
    tables = 16 * 4 + 256 * 4 + 4
    pieces = quantized_weight((elements,), "nf4", double_quant=True, block_size=block_size)
    assert sum(piece.n_bytes for piece in pieces) == (elements + 1) // 2 + blocks + 4 * ((blocks + 255) // 256) + tables


@given(pair=elements_and_more, double_quant=st.booleans(), block_size=st.sampled_from(BLOCK_SIZES))
def test_more_elements_never_take_fewer_bytes(pair, double_quant, block_size):
    small, more = pair
    totals = [
        sum(p.n_bytes for p in quantized_weight((n,), "fp4", double_quant=double_quant, block_size=block_size))
        for n in (small, small + more)
    ]
    assert totals[0] <= totals[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_is_what_was_recorded_on_a_simulated_gpu(optimizer):
    shared = [[p.name, list(p.shape), p.dtype, p.n_bytes, p.space] for p in optimizer_shared(optimizer)]
    for case in GOLDEN["cases"]:
        if case["optimizer"] == optimizer:
            pieces = optimizer_state(optimizer, tuple(case["shape"]), case["dtype"])
            assert [[p.name, list(p.shape), p.dtype, p.n_bytes, p.space] for p in pieces] == in_order(case["tensors"])
            assert case["shared"] in ([], shared)


def in_order(tensors):
    """The tensors as allocated: the recording has them as the state's dictionary has them, qmaps between."""
    return sorted(tensors, key=lambda tensor: tensor[0].startswith("absmax"))


def test_the_recording_has_every_optimizer_in_every_place():
    assert {case["optimizer"] for case in GOLDEN["cases"]} == set(OPTIMIZERS)
    assert {tensor[4] for case in GOLDEN["cases"] for tensor in case["tensors"]} == {"gpu", "managed", "host"}
    assert {c["optimizer"] for c in GOLDEN["cases"] if c["shared"]} == {o for o in OPTIMIZERS if optimizer_shared(o)}


def real_optimizer(name, parameters):
    """The optimizer as transformers' Trainer builds it, by the Trainer's own function where it knows the name."""
    transformers = pytest.importorskip("transformers")
    bnb = pytest.importorskip("bitsandbytes")
    if name == "adamw_32bit":
        return bnb.optim.AdamW32bit(parameters)
    arguments = transformers.TrainingArguments(optim=name, use_cpu=True, report_to=[])
    kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)
    return kind(parameters, **options)


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_is_what_the_real_optimizer_holds_after_a_step(optimizer):
    torch = pytest.importorskip("torch")
    for shape in ((5,), (4095,), (4096,), (64, 65), (333, 301), (3, 50, 70)):
        for dtype in ("bf16", "fp32"):
            parameter = torch.nn.Parameter(torch.ones(shape, dtype=torch_dtypes()[dtype]))
            parameter.grad = torch.ones_like(parameter)
            stepped = real_optimizer(optimizer, [parameter])
            stepped.step()
            state = {k: seen(v) for k, v in stepped.state[parameter].items() if torch.is_tensor(v)}
            shared = {name: state.pop(name) for name in ("qmap1", "qmap2") if name in state}
            assert said(optimizer_state(optimizer, shape, dtype)) == state
            assert shared in ({}, said(optimizer_shared(optimizer)))


@pytest.mark.libraries
def test_the_trainer_exempts_embeddings_from_8bit_state(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    arguments = transformers.TrainingArguments(str(tmp_path), optim="adamw_8bit", use_cpu=True, report_to=[])
    optimizer = transformers.Trainer(model, arguments).create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        state = {k: seen(v) for k, v in optimizer.state[parameter].items() if torch.is_tensor(v)}
        pieces = optimizer_state("adamw_8bit", tuple(parameter.shape), "fp32", keeps_32bit="embed" in name)
        assert {k: v for k, v in state.items() if not k.startswith("qmap")} == said(pieces)


@given(pair=elements_and_more, optimizer=st.sampled_from(OPTIMIZERS))
def test_state_grows_with_the_parameter_within_one_width(pair, optimizer):
    # 8-bit state begins at 4,096 elements, where it takes less than the fp32 state of one element fewer.
    small, more = (4096 + n for n in pair)
    totals = [sum(p.n_bytes for p in optimizer_state(optimizer, (n,), "bf16")) for n in (small, small + more)]
    assert totals[0] <= totals[1]


def test_paging_of_lora_on_qwen3_14b_is_by_tensor():
    # Rank 8 on 5120 x 17408: of the layer's fourteen adapters only these three pass 100,000 elements.
    shapes = {"gate_proj.B": (17408, 8), "down_proj.A": (8, 17408), "gate_proj.A": (8, 5120), "q_proj.B": (5120, 8)}
    places = {
        name: {piece.space for piece in optimizer_state("paged_adamw_32bit", shape, "fp32")}
        for name, shape in shapes.items()
    }
    assert places == {
        "gate_proj.B": {"managed"}, "down_proj.A": {"managed"}, "gate_proj.A": {"gpu"}, "q_proj.B": {"gpu"},
    }  # fmt: skip
