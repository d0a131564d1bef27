"""Random requests and frees on two streams; the history keeps the last events only.

python -m qmem.phantom --gpu rtx-4090 --memory 4GiB -- churn.py OUT.pickle SEED MAX_ENTRIES
"""

import random
import sys

import torch

MIB = 1 << 20


def churn(seed, operations=900):
    draw, kept = random.Random(seed), []  # noqa: S311 - a repeatable sequence
    streams = [torch.cuda.current_stream(), torch.cuda.Stream()]
    for _ in range(operations):
        chance = draw.random()
        if kept and chance < 0.49:
            kept.pop(draw.randrange(len(kept)))
        elif chance < 0.495:
            torch.cuda.empty_cache()
        else:
            with torch.cuda.stream(streams[draw.random() > 0.85]):
                kept.append(request(draw, kept))
    return kept


def request(draw, kept):
    size = int(2 ** draw.uniform(6, 28))
    try:
        return torch.empty(size, dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        del kept[::2]
        return torch.empty(1, device="cuda")


if __name__ == "__main__":
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=int(sys.argv[3]))
    left = churn(int(sys.argv[2]))
    torch.cuda.memory._dump_snapshot(sys.argv[1])
