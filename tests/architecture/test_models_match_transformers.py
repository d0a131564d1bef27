"""Every tensor of every catalogue model, compared with the model that transformers builds."""

import pytest
from meta_models import build_meta_model, small_config, tensors

from qmem.architecture import FAMILIES, describe
from qmem.catalogue import all_models
from qmem.catalogue.text_models import text_config

MODELS = [model for model in all_models() if model.config["model_type"] in FAMILIES]
TEXT_MODELS = [
    (model.id, text_config(model.config, model.id))
    for model in all_models()
    if model.config.get("text_config", {}).get("model_type") in FAMILIES
]
STORED = "quantization_config"
"""What a checkpoint is stored in says nothing of the model's tensors, and fp8 and mxfp4 are refused."""
FULL, SLIDING = "full_attention", "sliding_attention"
pytestmark = pytest.mark.libraries


def config_of(model_id):
    return next(model.config for model in all_models() if model.id == model_id)


def real_linears(model):
    torch = pytest.importorskip("torch")
    from transformers.pytorch_utils import Conv1D

    return [
        (name, tuple(module.weight.shape), module.bias is not None, isinstance(module, Conv1D))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]


def real_buffers(model):
    for name, buffer in model.named_buffers():
        holder, _, word = name.rpartition(".")
        yield name, tuple(buffer.shape), word not in model.get_submodule(holder)._non_persistent_buffers_set


def assert_same_model(described, model):
    assert tensors(model.named_parameters()) == [(p.name, p.shape) for p in described.parameters]
    assert list(real_buffers(model)) == [(b.name, b.shape, b.persistent) for b in described.buffers]
    assert real_linears(model) == [(x.name, x.weight_shape, x.bias, x.conv1d) for x in described.linears]
    assert {name for name, _ in model.named_modules() if name} == described.modules
    assert model.get_submodule(described.head) is model.get_output_embeddings()
    assert model.get_submodule(described.embedding) is model.get_input_embeddings()
    assert described.tied_head == bool(model.all_tied_weights_keys)


def test_the_catalogue_has_models_of_every_family():
    configs = [*(model.config for model in MODELS), *(config for _, config in TEXT_MODELS)]
    assert {config["model_type"] for config in configs} == set(FAMILIES)


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.id)
def test_every_tensor_of_a_catalogue_model_is_that_of_transformers(entry):
    config = {name: value for name, value in entry.config.items() if name != STORED}
    assert_same_model(describe(config), build_meta_model(config))


@pytest.mark.parametrize(("_name", "config"), TEXT_MODELS, ids=[name for name, _ in TEXT_MODELS])
def test_every_tensor_of_a_text_model_is_that_of_transformers(_name, config):
    assert_same_model(describe(config), build_meta_model(config))


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.id)
def test_the_catalogue_counts_the_parameters_that_are_described(entry):
    config = {name: value for name, value in entry.config.items() if name != STORED}
    assert describe(config).n_parameters == entry.params_counted


def test_qwen3_14b_has_the_published_number_of_parameters():
    assert describe(config_of("Qwen/Qwen3-14B")).n_parameters == 14_768_307_200


def test_a_small_config_of_every_family_is_described_as_transformers_builds_it(family):
    assert_same_model(describe(small_config(family)), build_meta_model(small_config(family)))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": None}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("mistral", {"num_key_value_heads": 4, "head_dim": 24}),
        ("qwen2", {"head_dim": 8}),
        ("qwen3", {"attention_bias": True, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
                                                               "original_max_position_embeddings": 128}}),
        ("qwen3_5_text", {"linear_num_value_heads": 2, "attention_bias": True, "tie_word_embeddings": True,
                          "layer_types": ["full_attention", "linear_attention", "linear_attention"]}),
        ("qwen3_5_moe_text", {"linear_conv_kernel_dim": 2, "partial_rotary_factor": 0.5}),
        ("qwen3_next", {"decoder_sparse_step": 2, "mlp_only_layers": None, "linear_num_value_heads": 2}),
        ("gemma", {"tie_word_embeddings": False, "attention_bias": True}),
        ("gemma3_text", {"sliding_window_pattern": 2}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 3,
                         "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("gemma4_text", {"layer_types": [FULL, SLIDING, SLIDING], "num_kv_shared_layers": 1, "attention_bias": True,
                         "use_double_wide_mlp": True, "enable_moe_block": False}),
        ("gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0,
                         "tie_word_embeddings": False}),
        ("gemma4_text", {"per_layer_config": {"02": {"head_dim": 16, "num_key_value_heads": 4}},
                         "layer_types": [SLIDING] * 3}),
        ("llama4_text", {"moe_layers": [0], "no_rope_layers": [0, 1, 0], "attention_bias": True, "use_qk_norm": False}),
        ("llama4_text", {"layer_types": [FULL] * 3, "tie_word_embeddings": True, "interleave_moe_layer_step": 1}),
        ("phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True, "num_key_value_heads": 2}),
        ("gpt2", {"n_inner": 80, "tie_word_embeddings": False}),
        ("gpt_bigcode", {"multi_query": False, "n_inner": 80, "tie_word_embeddings": False}),
        ("gptj", {"n_inner": 80, "rotary_dim": 16, "tie_word_embeddings": True}),
        ("mpt", {"attn_config": {"clip_qkv": 6.0}, "expansion_ratio": 2, "tie_word_embeddings": False}),
        ("gpt_neox", {"attention_bias": False, "rotary_pct": 1.0, "tie_word_embeddings": True}),
        ("opt", {"word_embed_proj_dim": None, "do_layer_norm_before": False, "enable_bias": False}),
        ("opt", {"_remove_final_layer_norm": True, "layer_norm_elementwise_affine": False}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": True}),
        ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
        ("falcon", {"parallel_attn": False, "multi_query": False, "ffn_hidden_size": 100}),
        ("cohere", {"use_qk_norm": True, "num_key_value_heads": 2}),
        ("olmo2", {"num_key_value_heads": 2, "attention_bias": True}),
        ("granite", {"attention_bias": True, "mlp_bias": True}),
        ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
        ("stablelm", {"use_qkv_bias": True, "use_parallel_residual": True}),
        ("phi", {"tie_word_embeddings": True, "partial_rotary_factor": 0.4}),
        ("glm", {"attention_bias": False, "partial_rotary_factor": 1.0}),
        ("roberta", {"type_vocab_size": 1, "tie_word_embeddings": False}),
        ("t5", {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 2, "tie_word_embeddings": False}),
        ("qwen2_moe", {"decoder_sparse_step": 2, "qkv_bias": False}),
        ("qwen3_moe", {"mlp_only_layers": None, "attention_bias": True, "head_dim": 48}),
        ("deepseek_v2", {"q_lora_rank": 24, "attention_bias": True, "mlp_bias": True, "n_shared_experts": 3}),
        ("deepseek_v3", {"q_lora_rank": 24, "attention_bias": True, "first_k_dense_replace": 2}),
        ("gpt_oss", {"attention_bias": False, "layer_types": ["full_attention"] * 3, "tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_the_options_of_a_family_change_the_tensors_as_in_transformers(family, changes):
    config = {**small_config(family), **changes}
    assert_same_model(describe(config), build_meta_model(config))


def test_only_the_gemma_embedding_scale_has_the_dtype_of_the_model(family):
    torch = pytest.importorskip("torch")
    names = {torch.float32: "fp32", torch.int64: "int64", torch.bool: "bool", torch.bfloat16: "model"}
    model = build_meta_model({**small_config(family), "torch_dtype": "bfloat16"})
    real = [(name, names[buffer.dtype]) for name, buffer in model.named_buffers()]
    assert real == [(buffer.name, buffer.dtype) for buffer in describe(small_config(family)).buffers]


def test_roles_say_what_a_tensor_is_for():
    roles = {p.name: p.role for p in describe(small_config("qwen2_moe")).parameters}
    layer = "model.layers.0."
    assert roles["model.embed_tokens.weight"] == "embedding"
    assert roles[layer + "self_attn.q_proj.weight"] == "linear"
    assert roles[layer + "self_attn.q_proj.bias"] == "bias"
    assert roles[layer + "mlp.experts.gate_up_proj"] == "expert"
    assert roles[layer + "mlp.gate.weight"] == roles[layer + "mlp.shared_expert_gate.weight"] == "router"
    assert roles[layer + "input_layernorm.weight"] == "norm"
    assert roles["lm_head.weight"] == "head"


def test_before_transformers_5_each_expert_is_three_linears():
    described = describe(small_config("mixtral"), fused_experts=False)
    names = [p.name for p in described.parameters if ".layers.2." in p.name and ".experts." in p.name]
    assert names[:3] == [f"model.layers.2.block_sparse_moe.experts.0.{w}.weight" for w in ("w1", "w2", "w3")]
    assert sum(linear.role == "expert" for linear in described.linears) == 3 * 16 * 3
    assert "model.layers.0.block_sparse_moe.gate" in {linear.name for linear in described.linears}


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_fusing_experts_changes_names_and_not_the_number_of_parameters(family):
    config = small_config(family)
    assert describe(config, fused_experts=False).n_parameters == describe(config).n_parameters
