"""Real models of transformers and peft without data: built on the meta device."""

import copy
import warnings

import pytest


def build_meta_model(config):
    """The model that AutoModelForCausalLM makes of a config.json, every tensor on the meta device."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        loaded = transformers.AutoConfig.for_model(**copy.deepcopy(config))
        loaded.pad_token_id = None  # torch wants it within the vocabulary; no shape depends on it
        return transformers.AutoModelForCausalLM.from_config(loaded)


def tensors(named):
    return [(name, tuple(tensor.shape)) for name, tensor in named]


SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4}  # fmt: skip
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_experts": 16}
_SMALL = {
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "opt": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 32},
    "falcon": {**SIZES, "bias": True},
    "gemma": {**SIZES, "head_dim": 32, "num_key_value_heads": 1},
    "gemma2": {**SIZES, "head_dim": 32, "num_key_value_heads": 2},
    "gemma3_text": {**SIZES, "head_dim": 32, "num_key_value_heads": 1},
    "mistral": {**SIZES, "num_key_value_heads": 2},
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 32},
    "smollm3": {**SIZES, "num_key_value_heads": 2},
    "starcoder2": {**SIZES, "num_key_value_heads": 2},
    "glm": {**SIZES, "head_dim": 32, "num_key_value_heads": 2},
    "stablelm": {**SIZES, "num_key_value_heads": 2},
    "mixtral": {**SIZES, "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 16},
    "qwen2_moe": {**SIZES, **MIXTURE, "num_key_value_heads": 2, "shared_expert_intermediate_size": 80},
    "qwen3_moe": {**SIZES, **MIXTURE, "num_key_value_heads": 2, "mlp_only_layers": [1]},
}


def small_config(family):
    """A config of a family with three narrow layers; every matrix but routers is at least 16 wide."""
    return {"model_type": family, **_SMALL.get(family, SIZES)}
