"""A bare loop under ``qmem.watch``: bare_loop.py FOLDER [detail] [keep] [short] [together]."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

import qmem

folder, words = Path(sys.argv[1]), sys.argv[2:]
GIB = 1024**3


def train_steps(model, optimizer, watching):
    kept = []
    for _ in range(6):
        for _ in range(2):
            batch = torch.randn(512, 1024, device="cuda")
            model(batch).square().mean().backward()
        if "keep" in words:
            kept.append(torch.empty(1024, 1024, dtype=torch.uint8, device="cuda"))
        optimizer.step()
        optimizer.zero_grad()
        if "short" in words:
            torch.empty(100 * GIB, dtype=torch.uint8, device="cuda")
    return watching.metrics()


def main():
    if "together" in words:
        torch.distributed.init_process_group("gloo")
    model = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    metrics = {}
    try:
        with qmem.watch(model, optimizer, path=folder / "run.json", detail="detail" in words) as watching:
            metrics = train_steps(model, optimizer, watching)
    except torch.OutOfMemoryError:
        metrics["caught"] = True
    left = [torch.autograd.backward.__module__, len(model._forward_pre_hooks)]
    sys.stdout.write(json.dumps({"metrics": metrics, "left": left}) + "\n")


main()
