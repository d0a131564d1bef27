"""One step of a small mixture of experts, as it is and with balanced routing assumed; prints one line of JSON."""

import json
import sys

from qmem import phantom
from qmem.catalogue import find_gpu

phantom.load(find_gpu("a100-80"))

import torch  # noqa: E402
import transformers  # noqa: E402

from qmem.phantom import guard  # noqa: E402

EXPERTS = 16
CONFIG = {
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128, "num_hidden_layers": 2,
    "vocab_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": EXPERTS,
    "num_experts_per_tok": 4,
}  # fmt: skip


def step(*, balanced):
    torch.cuda.reset_peak_memory_stats()
    with guard.watching() as verdict:
        with torch.device("cuda"):
            model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**CONFIG))
        model.set_experts_implementation("eager")

        def assume_balance(_, __, outputs):
            experts = outputs[-1]
            even = torch.arange(experts.numel()).remainder(EXPERTS).view(experts.shape)
            verdict.assume(experts, even, "balanced routing")

        for module in model.modules():
            if balanced and type(module).__name__.endswith("Router"):
                module.register_forward_hook(assume_balance)
        ids = torch.randint(0, CONFIG["vocab_size"], (2, 256)).cuda()
        model(input_ids=ids, labels=ids).loss.backward()
    why = sorted({read.why for read in verdict.reads if read.state != "clean"})
    return {"state": verdict.state, "why": why, "peak": torch.cuda.max_memory_allocated()}


sys.stdout.write(json.dumps({"as_it_is": step(balanced=False), "balanced": step(balanced=True)}) + "\n")
