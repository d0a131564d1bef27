"""What a stack says about an allocation."""

import pytest

from qmem.ledger import Kind
from qmem.profiler.labels import label_of, module_role
from qmem.profiler.names import series_name, transformers_name

MODELING = {
    "name": "forward",
    "filename": "/env/lib/python3.11/site-packages/transformers/models/qwen3/m.py",
    "line": 7,
}
CALL = {"name": "_call_impl", "filename": "/env/lib/python3.11/site-packages/torch/nn/modules/module.py", "line": 1}


def native(name: str) -> dict:
    return {"name": name, "filename": "??", "line": 0}


@pytest.mark.parametrize(
    ("module", "role"),
    [
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default", "self_attn.q_proj"),
        ("base_model.model.model.layers.3.mlp.up_proj.base_layer", "mlp.up_proj"),
        ("model.layers.3", "decoder layer"),
        ("model.norm", "norm"),
        ("base_model.model.model", "model"),
        ("base_model.model", ""),
    ],
)
def test_a_module_is_called_by_its_role_in_the_layer(module, role):
    assert module_role(module) == role


def test_an_allocation_is_told_by_operation_and_python_line():
    frames = [native("at::_ops::empty::call(...)"), native("at::_ops::mul_Tensor::call(...)"), CALL, MODELING]
    label = label_of({"frames": frames, "user_metadata": "mlp"}, "forward", in_head=False)
    assert label == ("mlp", Kind.INTERMEDIATE, "mul at transformers/models/qwen3/m.py:7")


def test_an_allocation_of_backward_is_told_by_its_node():
    frames = [native("at::_ops::mm::call(...)"), native("torch::autograd::generated::MmBackward0::apply(...)")]
    assert label_of({"frames": frames}, "backward", in_head=False).because == "MmBackward0"
    assert label_of({"frames": frames}, "backward", in_head=True).kind is Kind.LOGITS


def test_a_recomputed_allocation_is_told_by_its_own_line_and_not_by_the_node_that_wanted_it():
    node = native("torch::autograd::generated::MulBackward0::apply(...)")
    label = label_of({"frames": [native("at::_ops::mm::call(...)"), MODELING, node]}, "backward", in_head=False)
    assert label.because == "mm at transformers/models/qwen3/m.py:7"


@pytest.mark.parametrize(
    ("function", "phase", "kind"),
    [
        ("dequantize_4bit", "forward", Kind.DEQUANTIZED),
        ("_dequant_linear_fallback", "forward", Kind.DEQUANTIZED),
        ("forward", "loss", Kind.LOGITS),
        ("step", "optimizer step", Kind.OPTIMIZER_TEMPORARY),
    ],
)
def test_the_kind_follows_from_phase_and_function(function, phase, kind):
    frames = [native("at::_ops::empty::call(...)"), {**MODELING, "name": function}]
    assert label_of({"frames": frames}, phase, in_head=False).kind is kind


def test_what_is_multiplied_with_a_dequantized_weight_is_no_weight():
    fallback = {**MODELING, "name": "_dequant_linear_fallback"}
    frames = [native("at::_ops::addmm::call(...)"), native("at::_ops::linear::call(...)"), fallback, MODELING]
    assert label_of({"frames": frames}, "forward", in_head=False).kind is Kind.INTERMEDIATE


def test_a_workspace_of_cublas_is_known_by_its_stack():
    frames = [native("at::cuda::(anonymous namespace)::setWorkspaceForHandle(...)"), MODELING]
    assert label_of({"frames": frames}, "forward", in_head=False).kind is Kind.WORKSPACE


def test_tensors_are_called_as_in_the_transformers_model():
    peft = "base_model.model.model.layers.3.mlp.up_proj"
    assert transformers_name(f"{peft}.base_layer.weight") == "model.layers.3.mlp.up_proj.weight"
    experts = "base_model.model.model.layers.3.mlp.experts"
    assert transformers_name(f"{experts}.base_layer.base_layer.down_proj") == "model.layers.3.mlp.experts.down_proj"
    assert transformers_name(f"{peft}.lora_A.default.weight") == f"{peft}.lora_A.default.weight"
    assert series_name("model.layers.3.mlp.up_proj.weight") == "model.layers.*.mlp.up_proj.weight"
