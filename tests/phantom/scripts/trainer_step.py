"""QLoRA steps of transformers' Trainer on the phantom, watched by the guard; prints one line of JSON.

Weights are made on the device and quantized there, in the order of the model's modules.
"""

import argparse
import json
import os
import sys

options = argparse.ArgumentParser()
options.add_argument("--model", required=True)
options.add_argument("--gpu", default="a100-80")
options.add_argument("--layers", type=int)
options.add_argument("--batch", type=int, default=1)
options.add_argument("--seq", type=int, default=2048)
options.add_argument("--steps", type=int, default=3)
options.add_argument("--padded", action="store_true", help="the last quarter of every sequence is padding")
options.add_argument("--mask", action="store_true", help="a mask of ones is passed")
options.add_argument("--expandable", action="store_true")
options.add_argument("--unwatched", action="store_true")
chosen = options.parse_args()
if chosen.expandable:
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
os.environ["HF_HUB_OFFLINE"] = "1"

from qmem import phantom  # noqa: E402
from qmem.catalogue import find_gpu, find_model  # noqa: E402

device = phantom.load(find_gpu(chosen.gpu))

import bitsandbytes as bnb  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training  # noqa: E402
from transformers.integrations.bitsandbytes import replace_with_bnb_linear  # noqa: E402

from qmem.phantom import guard  # noqa: E402


def quantized_model():
    config = dict(find_model(chosen.model).config)
    if chosen.layers:
        config["num_hidden_layers"] = chosen.layers
        config.pop("layer_types", None)
    for key in ("architectures", "torch_dtype"):
        config.pop(key, None)
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    model.eval()
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
    for module in list(model.modules()):
        fill(module)
    model.is_loaded_in_4bit = model.is_quantized = True
    model.quantization_method = "bitsandbytes"
    model.hf_quantizer = transformers.quantizers.AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    torch.cuda.empty_cache()
    return model


def fill(module):
    for name, parameter in list(module.named_parameters(recurse=False)):
        four_bit = isinstance(module, bnb.nn.Linear4bit) and name == "weight"
        shape = (module.out_features, module.in_features) if four_bit else parameter.shape
        values = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        if four_bit:
            new = bnb.nn.Params4bit(values, requires_grad=False, quant_type="nf4", compress_statistics=True)
            module.weight = new._quantize("cuda")
            module.weight.module = module
        else:
            setattr(module, name, torch.nn.Parameter(values, requires_grad=False))
        del values
    for name, buffer in list(module.named_buffers(recurse=False)):
        module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cuda")


class Sequences(torch.utils.data.Dataset):
    def __len__(self):
        return 4096

    def __getitem__(self, i):
        ids = torch.randint(5, 200, (chosen.seq,))
        example = {"input_ids": ids, "labels": ids.clone()}
        if chosen.mask or chosen.padded:
            example["attention_mask"] = torch.ones_like(ids)
        if chosen.padded:
            example["attention_mask"][-chosen.seq // 4 :] = 0
        return example


def spy_on_attention(seen):
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **rest):
        seen.add(None if attn_mask is None else tuple(attn_mask.shape))
        return original(query, key, value, attn_mask=attn_mask, **rest)

    torch.nn.functional.scaled_dot_product_attention = spy


def train(verdict):
    load = torch.cuda.memory_allocated()
    checkpointing = {"use_reentrant": False}
    model = prepare_model_for_kbit_training(quantized, gradient_checkpointing_kwargs=checkpointing)
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = transformers.Trainer(
        model=get_peft_model(model, adapter),
        args=transformers.TrainingArguments(
            output_dir="/nowhere",
            bf16=True,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=checkpointing,
            optim="paged_adamw_32bit",
            per_device_train_batch_size=chosen.batch,
            max_steps=chosen.steps,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        ),
        train_dataset=Sequences(),
    )
    if verdict:
        declare_scalars(trainer, verdict)
    trainer.train()
    return load


def declare_scalars(trainer, verdict):
    training_step, clip = trainer.training_step, trainer._clip_grad_norm

    def declared_step(*args, **kwargs):
        loss = training_step(*args, **kwargs)
        verdict.declare(loss, "loss")
        return loss

    def declared_clip(*args, **kwargs):
        norm = clip(*args, **kwargs)
        verdict.declare(norm, "gradient norm")
        return norm

    trainer.training_step, trainer._clip_grad_norm = declared_step, declared_clip


torch.manual_seed(0)
attention_masks = set()
spy_on_attention(attention_masks)
if chosen.unwatched:
    verdict = None
    quantized = quantized_model()
    after_load = train(None)
else:
    with guard.watching() as verdict:
        quantized = quantized_model()
        after_load = train(verdict)
counted = torch.cuda.memory_stats()
sys.stdout.write(
    json.dumps(
        {
            "after_load": after_load,
            "peak_allocated": counted["allocated_bytes.all.peak"],
            "peak_reserved": counted["reserved_bytes.all.peak"],
            "managed": device.stats().managed_bytes,
            "attention_masks": sorted(map(str, attention_masks)),
            "state": verdict.state if verdict else None,
            "reads": [read._asdict() for read in verdict.reads] if verdict else [],
        }
    )
)
