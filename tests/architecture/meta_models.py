"""Real models of transformers and peft without data: built on the meta device."""

import copy
import warnings

import pytest

from qmem.architecture import auto_class


def build_meta_model(config):
    """The model that transformers makes of a config.json, every tensor on the meta device."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        loaded = transformers.AutoConfig.for_model(**copy.deepcopy(config))
        loaded.pad_token_id = None  # torch wants it within the vocabulary; no shape depends on it
        return getattr(transformers, auto_class(config["model_type"])).from_config(loaded)


def tensors(named):
    return [(name, tuple(tensor.shape)) for name, tensor in named]


SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4}  # fmt: skip
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_experts": 16}
LATENT = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_routed_experts": 16, "n_group": 2,
          "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": None, "qk_nope_head_dim": 16,
          "qk_rope_head_dim": 16, "v_head_dim": 24}  # fmt: skip
LINEAR_ATTENTION = {"linear_num_key_heads": 2, "linear_num_value_heads": 16, "linear_key_head_dim": 16,
                    "linear_value_head_dim": 8, "full_attention_interval": 2}  # fmt: skip
_SMALL = {
    "t5": {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4},
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_bigcode": {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gptj": {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "rotary_dim": 8},
    "mpt": {"vocab_size": 320, "d_model": 64, "n_layers": 3, "n_heads": 4},
    "opt": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 32},
    "falcon": {**SIZES, "bias": True},
    "gemma": {**SIZES, "head_dim": 32, "num_key_value_heads": 1},
    "gemma2": {**SIZES, "head_dim": 32, "num_key_value_heads": 2},
    "gemma3_text": {**SIZES, "head_dim": 32, "num_key_value_heads": 1},
    "gemma4_text": {
        **SIZES,
        "head_dim": 32,
        "global_head_dim": 48,
        "num_key_value_heads": 2,
        "enable_moe_block": True,
        "num_experts": 16,
        "top_k_experts": 2,
        "moe_intermediate_size": 48,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 300,
    },
    "llama4_text": {
        **SIZES,
        "head_dim": 32,
        "num_key_value_heads": 2,
        "intermediate_size_mlp": 80,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
    },
    "mistral": {**SIZES, "num_key_value_heads": 2},
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 32},
    "qwen3_5_text": {**SIZES, **LINEAR_ATTENTION, "num_key_value_heads": 2, "head_dim": 32},
    "smollm3": {**SIZES, "num_key_value_heads": 2},
    "starcoder2": {**SIZES, "num_key_value_heads": 2},
    "glm": {**SIZES, "head_dim": 32, "num_key_value_heads": 2},
    "stablelm": {**SIZES, "num_key_value_heads": 2},
    "mixtral": {**SIZES, "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 16},
    "qwen2_moe": {**SIZES, **MIXTURE, "num_key_value_heads": 2, "shared_expert_intermediate_size": 80},
    "qwen3_moe": {**SIZES, **MIXTURE, "num_key_value_heads": 2, "mlp_only_layers": [1]},
    "qwen3_5_moe_text": {
        **SIZES,
        **MIXTURE,
        **LINEAR_ATTENTION,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "shared_expert_intermediate_size": 80,
    },
    "qwen3_next": {
        **SIZES,
        **MIXTURE,
        **LINEAR_ATTENTION,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "shared_expert_intermediate_size": 80,
        "mlp_only_layers": [1],
    },
    "deepseek_v2": {**SIZES, **LATENT},
    "deepseek_v3": {**SIZES, **LATENT},
    "gpt_oss": {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "num_experts_per_tok": 2, "num_local_experts": 16},
}


def small_config(family):
    """A config of a family with three narrow layers; every matrix but routers is at least 16 wide."""
    return {"model_type": family, **_SMALL.get(family, SIZES)}
