"""One step of small mixtures of experts, routed in balance or as they are; prints the outcomes as one line of JSON."""

import json
import os
import sys
import warnings

from qmem import phantom
from qmem.catalogue import find_gpu

phantom.load(find_gpu(sys.argv[1]))

import torch  # noqa: E402
import transformers  # noqa: E402

from qmem.phantom import guard  # noqa: E402
from qmem.profiler.routing import assume_balanced_routing  # noqa: E402

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()

BASE = {"hidden_size": 128, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
        "vocab_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
QWEN = {"num_experts": 12, "num_experts_per_tok": 4, "shared_expert_intermediate_size": 32}
LATENT = {"n_routed_experts": 12, "num_experts_per_tok": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
          "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
          "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 16, "num_key_value_heads": 4}  # fmt: skip
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 3}
FAMILIES = {
    "llama": {},
    "mixtral": LOCAL,
    "qwen2_moe": QWEN,
    "qwen3_moe": QWEN,
    "gpt_oss": {**LOCAL, "layer_types": ["sliding_attention", "full_attention"]},
    "olmoe": {"num_experts": 12, "num_experts_per_tok": 4},
    "granitemoe": LOCAL,
    "phimoe": {**LOCAL, "num_experts_per_tok": 2},
    "glm4_moe": {**LATENT, "head_dim": 32},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "qwen3_next": {**QWEN, "layer_types": ["linear_attention", "full_attention"]},
    "llama4_text": {**LOCAL, "num_experts_per_tok": 1},
}
TOKENS = (2, 50)


def build(family, implementation):
    config = transformers.AutoConfig.for_model(family, **{**BASE, **FAMILIES[family]})
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if implementation != "default":
        model.set_experts_implementation(implementation)
    model.gradient_checkpointing_enable()
    return model.train()


def step(model):
    ids = torch.randint(0, BASE["vocab_size"], TOKENS).cuda()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def outcome(family, *, balanced=True, implementation="default"):
    torch.cuda.reset_peak_memory_stats()
    with guard.watching() as verdict:
        model = build(family, implementation)
        if balanced:
            assume_balanced_routing(model, verdict)
        step(model)
    return {
        "implementation": model.config._experts_implementation,
        "state": verdict.state,
        "why": sorted({read.why for read in verdict.reads if read.state == "assumed"}),
        "peak": torch.cuda.max_memory_allocated(),
    }


def routed(family):
    """Tokens of each expert at every call, and whether a token's experts differ."""
    counts, differ = [], []

    def look(module, arguments):
        indices = arguments[1].cpu()
        counts.append(indices.flatten().bincount(minlength=module.num_experts).tolist())
        differ.append(bool((indices.sort(-1).values.diff(dim=-1) > 0).all()))

    with guard.watching() as verdict:
        model = build(family, "default")
        assume_balanced_routing(model, verdict)
        for module in model.modules():
            if module._forward_pre_hooks:
                module.register_forward_pre_hook(look)
        step(model)
    return {"counts": counts, "differ": all(differ)}


outcomes = {
    "balanced": {family: outcome(family) for family in FAMILIES},
    "as_it_is": {family: outcome(family, balanced=False) for family in ("mixtral", "qwen3_moe")},
    "routed": {family: routed(family) for family in ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")},
    "eager": outcome("mixtral", implementation="eager"),
    "eager_as_it_is": outcome("mixtral", balanced=False, implementation="eager"),
    "batched_mm": outcome("mixtral", implementation="batched_mm"),
}
sys.stdout.write(json.dumps(outcomes) + "\n")
sys.stdout.flush()
os._exit(0)  # a library's thread that still runs at the end would abort the interpreter
