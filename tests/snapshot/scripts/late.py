"""Recorded from the middle on, with two streams, a private pool, a second device and the cache emptied once.

python -m qmem.phantom --gpu rtx-4090 --devices 2 -- late.py OUT.pickle
"""

import sys

import torch

MIB = 1 << 20


def request(mebibytes, device="cuda:0"):
    return torch.empty(mebibytes * MIB, dtype=torch.uint8, device=device)


def work():
    before = [request(3) for _ in range(20)]
    del before[::2]
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=int(sys.argv[2]))
    kept = [request(5 + number) for number in range(40)]
    del kept[::5], before[::3]
    torch.cuda.empty_cache()
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        kept.append(request(7))
    waiting = request(9)
    waiting.record_stream(other)
    del waiting
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        apart = [request(11), request(1)]
    kept += [request(size) for size in (64, 2, 1, 33)]
    elsewhere = request(50, "cuda:1")
    print(torch.cuda.memory_allocated(0), torch.cuda.memory_reserved(0))  # noqa: T201 - a test reads it
    torch.cuda.memory._dump_snapshot(sys.argv[1])
    return before, kept, pool, apart, elsewhere


if __name__ == "__main__":
    work()
