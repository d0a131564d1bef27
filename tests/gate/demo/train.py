"""QLoRA on a model of the shape of Qwen2-1.5B (its layers cut to a few), in a bare loop."""

import sys
from types import MethodType

import bitsandbytes
import settings
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput

SHAPE = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2,
    "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 131_072,
}  # fmt: skip
CHUNK = 256


def build_model(rank, forward):
    config = AutoConfig.for_model("qwen2", num_hidden_layers=settings.LAYERS, **SHAPE)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    quantize_layers(model.model.layers)
    model.requires_grad_(requires_grad=False)
    model.lm_head.to(getattr(torch, settings.HEAD_DTYPE))
    if settings.CHECKPOINTING:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    if forward is not None:
        model.forward = MethodType(forward, model)
    return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))


def quantize_layers(layers):
    for parent in list(layers.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, torch.nn.Linear):
                setattr(parent, name, quantized(linear))


def quantized(linear):
    shape, has_bias = (linear.in_features, linear.out_features), linear.bias is not None
    made = bitsandbytes.nn.Linear4bit(*shape, bias=has_bias, compute_dtype=torch.bfloat16, device="meta")
    made.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False).to("cuda")
    made.bias = linear.bias
    return made


def fused_forward(model, input_ids, labels, **_):
    """In place of the model's own forward: the logits of a chunk live only while its loss is computed."""
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    chunks = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    losses = [checkpoint(chunk_loss, model.lm_head, *chunk, use_reentrant=False) for chunk in chunks]
    return CausalLMOutput(loss=torch.stack(losses).sum() / targets.numel())


def chunk_loss(head, hidden, targets):
    logits = head(hidden.to(head.weight.dtype))
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def embedding_forward(model, input_ids, **_):
    """Each text is to be most like itself: the loss of an embedding model, without a head."""
    texts = model.model(input_ids=input_ids, use_cache=False).last_hidden_state.mean(1)
    likeness = (texts @ texts.T).float()
    return CausalLMOutput(loss=functional.cross_entropy(likeness, torch.arange(len(texts), device="cuda")))


def train(rank=settings.RANK, tokens=settings.TOKENS, forward=fused_forward if settings.FUSED_LOSS else None):
    model = build_model(rank, forward)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = bitsandbytes.optim.PagedAdamW32bit if settings.PAGED_OPTIMIZER else bitsandbytes.optim.AdamW32bit
    optimizer = adamw(trained, lr=1e-4)
    history = []
    for step in range(settings.STEPS):
        ids = torch.randint(0, SHAPE["vocab_size"], tokens).to("cuda")
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if settings.KEEP_HISTORY:
            history.append(torch.empty(1024, 1024, dtype=torch.uint8, device="cuda"))
        sys.stdout.write(f"step {step}: loss {loss.item():.3f}\n")


def train_wide():
    """With adapters so wide that their optimizer state is paged: from 100,000 elements on."""
    train(rank=16)


def train_embeddings():
    """On queries of a few words: bitsandbytes multiplies so few tokens with the packed weights."""
    train(tokens=(2, 8), forward=embedding_forward)


if __name__ == "__main__":
    train()
