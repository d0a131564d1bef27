"""The real Trainer with ``qmem.TrainerCallback``: trainer.py FOLDER CONFIG [detail] [first] [short] [fails]."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers import TrainerCallback as Callback

import qmem

folder, config, words = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]


class Seen(Callback):
    """What a callback that reports would see."""

    def __init__(self):
        self.logs = []

    def on_log(self, *_, logs, **__):
        self.logs.append(dict(logs))


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = torch.arange(256)
        return {"input_ids": ids, "labels": ids.clone()}


class Hungry(Trainer):
    """Asks for more than the card has in the third step's forward, or fails there."""

    def compute_loss(self, *arguments, **keywords):
        if "short" in words and self.state.global_step == 2:
            torch.empty(100 * 1024**3, dtype=torch.uint8, device="cuda")
        if "fails" in words and self.state.global_step == 2 and self.model.training:
            raise ValueError("a batch is broken")
        return super().compute_loss(*arguments, **keywords)


def main():
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config), dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        str(folder / "output"), max_steps=5, gradient_accumulation_steps=2, per_device_train_batch_size=2, bf16=True,
        logging_steps=2, report_to=[], disable_tqdm=True, save_strategy="no",
        eval_strategy="steps" if "fails" in words else "no", eval_steps=2,
    )  # fmt: skip
    seen = Seen()
    callback = qmem.TrainerCallback(path=folder / "run.json", detail="detail" in words)
    tokens = Tokens()
    trainer = Hungry(model=model, args=arguments, train_dataset=tokens, eval_dataset=tokens, callbacks=[seen, callback])
    if "first" in words:
        callback.attach(trainer)
    with suppress(torch.OutOfMemoryError, ValueError):
        trainer.train()
    history = trainer.state.log_history
    sys.stdout.write(json.dumps({"history": history, "seen": seen.logs}) + "\n")


main()
