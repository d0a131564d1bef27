"""A loop as people write it: batches of many lengths, one tensor kept a step, until a request finds no room.

python -m qmem.phantom --gpu rtx-4090 --memory 3GiB -- train.py OUT.pickle
"""

import sys

import torch


class Block(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.up, self.down = torch.nn.Linear(hidden, 4 * hidden), torch.nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def train(hidden=512, vocabulary=8000, steps=40):
    model = torch.nn.Sequential(
        torch.nn.Embedding(vocabulary, hidden), Block(hidden), Block(hidden), torch.nn.Linear(hidden, vocabulary)
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    kept = []
    for step in range(steps):
        tokens = torch.zeros(1024 + 1024 * (step * 5 % 8) + 64 * step, dtype=torch.long, device="cuda")
        logits = model(tokens)
        loss = torch.nn.functional.cross_entropy(logits, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append(logits.detach()[::2].clone())
        if step % 3:
            kept.pop(0)


if __name__ == "__main__":
    torch.cuda.memory._record_memory_history(stacks="python")
    try:
        train()
    except torch.cuda.OutOfMemoryError as error:
        print(error)  # noqa: T201 - a test reads it
    torch.cuda.memory._dump_snapshot(sys.argv[1])
