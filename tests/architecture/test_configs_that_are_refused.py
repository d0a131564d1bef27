"""Bad and foreign configs: one clear line that names the field."""

import pytest
from meta_models import small_config

from qmem.architecture import FAMILIES, describe, position_warning
from qmem.errors import UnsupportedError, UsageError


@pytest.mark.parametrize(
    "field", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_a_missing_field_is_named(field):
    config = small_config("llama")
    del config[field]
    with pytest.raises(UsageError, match=f"config.json has no {field}; a llama model needs it"):
        describe(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "4096"}, "hidden_size in config.json is '4096', but must be a whole number"),
        ({"hidden_size": 64.0}, "hidden_size in config.json is 64.0, but must be a whole number"),
        ({"hidden_size": True}, "hidden_size in config.json is True, but must be a whole number"),
        ({"hidden_size": None}, "hidden_size in config.json is None, but must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers in config.json is 0, but must be from 1 to 1024"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json is 1000000000, but must be from 1 to 1024"),
        ({"vocab_size": -1}, "vocab_size in config.json is -1, but must be from 1 to"),
        ({"vocab_size": 10**12}, "vocab_size in config.json is 1000000000000, but must be from 1 to"),
        ({"num_attention_heads": 5}, "hidden_size is 64, which is not a multiple of num_attention_heads, 5"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, which is not a multiple of num_key_value_heads, 3"),
        ({"head_dim": 15}, "head_dim is 15, but rotary positions need an even number"),
        ({"attention_bias": 1}, "attention_bias in config.json is 1, but must be true or false"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings in config.json is 'no', but must be true or false"),
        ({"rope_scaling": "linear"}, "rope_scaling in config.json is 'linear', but must be an object or null"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_type in config.json is 'spiral', but must be one of default, "),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor in config.json is 1.5, but must be above 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings in config.json is 0, but must be from 1 to"),
    ],
)
def test_an_impossible_value_is_refused_with_its_field(changes, message):
    with pytest.raises(UsageError, match=message):
        describe({**small_config("llama"), **changes})


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types in config.json must name full_attention or"),
        ("gemma3_text", {"layer_types": "full"}, "layer_types in config.json is 'full', but must be a list of names"),
        ("gemma2", {"sliding_window": None}, "layer_types in config.json names sliding_attention, but there is no"),
        (
            "gemma2",
            {"final_logit_softcapping": -1},
            "final_logit_softcapping in config.json is -1, but must be a number",
        ),
        (
            "qwen3",
            {"layer_types": ["sliding_attention"] * 3},
            "names sliding_attention, but there is no sliding_window",
        ),
        ("qwen3_5_text", {"layer_types": ["sliding_attention"] * 3}, "must name full_attention or linear_attention"),
        ("qwen3_next", {"linear_num_key_heads": 3}, "linear_num_value_heads is 16, which is not a multiple of"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers in config.json has 2 values, but there are 3 layers"),
        ("smollm3", {"no_rope_layers": ["1"]}, "no_rope_layers in config.json is .'1'., but must be a list of whole"),
        (
            "llama4_text",
            {"no_rope_layers": [1, 0]},
            "no_rope_layers in config.json has 2 values, but there are 3 layers",
        ),
        (
            "llama4_text",
            {"layer_types": ["sliding_attention"] * 3},
            "layer_types in config.json must name full_attention",
        ),
        ("llama4_text", {"num_experts_per_tok": 17}, "num_experts_per_tok is 17, but a layer has only 16 experts"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers is 1, but the 2 layers before lack a type"),
        ("gemma4_text", {"top_k_experts": 17}, "top_k_experts is 17, but a layer has only 16 experts"),
        ("gemma4_text", {"per_layer_config": {"0": {"head_dim": 16}}}, "gives layers of one type different heads"),
        (
            "gemma4_text",
            {"per_layer_config": {"0": {"rank": 1}}},
            "per_layer_config in config.json holds rank, but may",
        ),
        ("phi", {"resid_pdrop": 1}, "resid_pdrop in config.json is 1, but must be at least 0 and below 1"),
        ("llama", {"hidden_act": None}, "hidden_act in config.json is None, but must be a word"),
        ("qwen3_moe", {"mlp_only_layers": [0.5]}, r"mlp_only_layers in config.json is \[0.5\], but must be a list"),
        ("mixtral", {"num_experts_per_tok": 17}, "num_experts_per_tok is 17, but a layer has only 16 experts"),
        ("mixtral", {"num_local_experts": 10**6}, "num_local_experts in config.json is 1000000, but must be from"),
        ("opt", {"num_attention_heads": 7}, "hidden_size is 64, which is not a multiple of num_attention_heads, 7"),
        ("gpt2", {"n_head": 7}, "n_embd is 64, which is not a multiple of n_head, 7"),
        ("gpt2", {"add_cross_attention": True}, "this GPT-2 has cross-attention"),
        ("gpt_bigcode", {"multi_query": None}, "multi_query in config.json is None, but must be true or false"),
        ("gpt_bigcode", {"add_cross_attention": True}, "this GPTBigCode has cross-attention"),
        ("gptj", {"rotary_dim": 64}, "rotary_dim is 64, but must be even and at most the size of a head, 16"),
        ("gptj", {"rotary_dim": 7}, "rotary_dim is 7, but must be even"),
        ("mpt", {"n_heads": 7}, "d_model is 64, which is not a multiple of n_heads, 7"),
        ("mpt", {"attn_config": {"clip_qkv": 0}}, "clip_qkv in config.json is 0, but must be a number above 0"),
        ("gpt_neox", {"rotary_pct": 0}, "rotary_pct in config.json is 0, but must be above 0"),
        ("falcon", {"num_kv_heads": 3, "new_decoder_architecture": True}, "not a multiple of num_kv_heads, 3"),
    ],
)
def test_fields_of_one_family_are_checked_too(family, changes, message):
    with pytest.raises(UsageError, match=message):
        describe({**small_config(family), **changes})


def test_an_unknown_family_is_refused_by_name_with_those_that_are_supported():
    with pytest.raises(UnsupportedError, match="model type 'mamba' is not supported yet; supported are llama, mistral"):
        describe({"model_type": "mamba"})


def test_a_config_that_asks_for_remote_code_is_refused():
    config = {"model_type": "baichuan", "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.Baichuan"}}
    with pytest.raises(UnsupportedError, match=r"baichuan brings its own code \(auto_map\), which qmem never runs"):
        describe(config)


def test_remote_code_beside_a_family_that_transformers_knows_is_not_needed():
    config = {**small_config("phi3"), "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    assert describe(config) == describe(small_config("phi3"))


def test_a_multi_modal_model_is_refused_by_name_and_its_text_part_offered():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {}}
    with pytest.raises(
        UnsupportedError, match=r"gemma3 is a multi-modal model .*; its text_config alone, a gemma3_text"
    ) as refused:
        describe(config)
    assert refused.value.hint.endswith("write :text_config behind the model's name")


def test_a_checkpoint_in_a_format_that_is_not_modelled_is_refused():
    config = {**small_config("llama"), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(UnsupportedError, match="this checkpoint stores gptq weights, which qmem does not model"):
        describe(config)


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_config_without_a_model_type_is_refused(config):
    with pytest.raises(UsageError, match=r"config\.json has no model_type"):
        describe(config)


def test_a_config_that_is_no_object_is_refused():
    with pytest.raises(UsageError, match=r"config\.json holds a list, but must be an object"):
        describe([])


def test_describing_leaves_the_config_as_it_was():
    config = small_config("qwen3_moe")
    describe(config)
    assert config == small_config("qwen3_moe")


def test_a_longer_sequence_than_the_positions_is_a_warning():
    described = describe({**small_config("llama"), "max_position_embeddings": 4096})
    assert position_warning(described, 4096) is None
    assert "4097 is beyond the 4096 positions" in position_warning(described, 4097)


def test_learned_positions_end_where_they_end():
    assert "cannot run" in position_warning(describe(small_config("gpt2")), 129)


def test_alibi_has_no_last_position():
    assert position_warning(describe({**small_config("falcon"), "alibi": True}), 10**6) is None


def test_every_family_reads_only_plain_values(family):
    values = describe(small_config(family)).config.values()
    assert all(isinstance(value, bool | int | float | str | tuple | None) for value in values)


def test_fifteen_families_come_first():
    first = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt",
             "falcon", "mixtral", "qwen2_moe", "qwen3_moe"}  # fmt: skip
    assert first <= set(FAMILIES)
