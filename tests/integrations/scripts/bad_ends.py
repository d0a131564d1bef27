"""Watches that end badly, or should not begin, in one process: bad_ends.py FOLDER."""

import json
import logging
import shutil
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

import qmem

folder = Path(sys.argv[1])
GIB = 1024**3


def build():
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).cuda()
    return model, torch.optim.AdamW(model.parameters())


def step(model, optimizer):
    model(torch.randn(32, 256, device="cuda")).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def said_by(error, model=None, optimizer=None, act=None, **how):
    """What the error says that ends a watch."""
    if model is None:
        model, optimizer = build()
    try:
        with qmem.watch(model, optimizer, **how) as watching:
            act(model, optimizer)
    except error as caught:
        return f"{type(caught).__name__}: {caught}"
    return watching.ledger


def interrupted_before_a_step():
    def interrupt(*_):
        raise KeyboardInterrupt

    said = said_by(KeyboardInterrupt, act=interrupt, path=folder / "interrupted.json")
    return said, json.loads((folder / "interrupted.json").read_text())["ended"]


def two_models():
    def watch_another(*_):
        other, its = build()
        with qmem.watch(other, its):
            pass

    return said_by(qmem.errors.UsageError, act=watch_another, path=folder / "two.json")


def detail_within():
    def look_closer(model, optimizer):
        with qmem.watch(model, optimizer, detail=True):
            pass

    return said_by(qmem.errors.UsageError, act=look_closer, path=folder / "closer.json")


def shared():
    model, optimizer = build()
    with qmem.watch(model, optimizer, path=folder / "outer.json") as outer:
        with qmem.watch(model, optimizer, path=folder / "inner.json") as inner:
            step(model, optimizer)
        step(model, optimizer)
    return [max(reading.moment.step for reading in one.ledger.readings) for one in (inner, outer)]


def another_optimizer():
    (model, optimizer), (_, other) = build(), build()
    ledger = said_by(ValueError, model, other, lambda model, _: step(model, optimizer), path=folder / "other.json")
    return ledger.warnings


def folder_that_is_gone():
    gone = folder / "gone"
    gone.mkdir()

    def remove(model, optimizer):
        step(model, optimizer)
        shutil.rmtree(gone)
        gone.touch()

    return said_by(ValueError, act=remove, path=gone / "run.json").ended


def after_a_shortage():
    with suppress(torch.OutOfMemoryError):
        torch.empty(100 * GIB, dtype=torch.uint8, device="cuda")
    return said_by(ValueError, act=step, path=folder / "after.json").warnings


def memory_is_given_back():
    model, optimizer = build()
    with qmem.watch(model, optimizer, path=folder / "back.json") as watching:
        step(model, optimizer)
    alive = weakref.ref(model)
    del model, optimizer
    return alive() is None, watching.ledger.ended


def main():
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    said = {
        "interrupted": interrupted_before_a_step(),
        "no module": said_by(qmem.errors.UsageError, "a model"),
        "no optimizer": said_by(qmem.errors.UsageError, nn.Linear(2, 2), "adam"),
        "two models": two_models(),
        "detail within": detail_within(),
        "shared": shared(),
        "another optimizer": another_optimizer(),
        "gone": folder_that_is_gone(),
        "after a shortage": after_a_shortage(),
        "given back": memory_is_given_back(),
    }
    sys.stdout.write(json.dumps(said) + "\n")


main()
