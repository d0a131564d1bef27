"""One hand-made ledger, shaped like a Qwen3-14B job, that goes through every report."""

import io
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
from rich.console import Console

from qmem.estimator.rule_of_thumb import RuleOfThumb, rule_of_thumb
from qmem.job import Job
from qmem.ledger import Interval, Item, Kind, Ledger, Moment, Parameters, Peak
from qmem.planner import Part, Verdict
from qmem.report.view import EstimateView

TIMES = "\N{MULTIPLICATION SIGN}"
MIB = 1024**2
GIB = 1024**3
LOAD = Moment(0, 0, "load", 0)
PREPARE = Moment(0, 0, "prepare", 100)
BACKWARD_1 = Moment(1, 1, "backward", 900)
STEP_1 = Moment(1, 1, "optimizer step", 1_000)
LOSS_2 = Moment(2, 1, "loss", 1_500)
AFTER_LOSS = Moment(2, 1, "loss", 1_501)
BACKWARD_2 = Moment(2, 1, "backward", 1_900)
END_2 = Moment(2, 1, "optimizer step", 2_000)


def _resident() -> list[Item]:
    """Weights and adapters: layer by layer, as an instrument posts them."""
    items = [
        Item(
            n_bytes=151_936 * 5_120 * 4,
            kind=Kind.WEIGHT_32BIT,
            owner=owner,
            born=PREPARE,
            because="151,936 x 5,120 x 4 B (fp32 by k-bit preparation)",
        )
        for owner in ("model.embed_tokens.weight", "lm_head.weight")
    ]
    for layer in range(40):
        up = f"model.layers.{layer}.mlp.up_proj"
        items += [
            Item(n_bytes=44_564_480, kind=Kind.BASE_WEIGHT, owner=f"{up}.weight", born=LOAD,
                 because="17,408 x 5,120 x 4 bit / 8"),
            Item(n_bytes=1_414_220, kind=Kind.QUANT_STATE, owner=f"{up}.weight", born=LOAD,
                 because="absmax 1,392,640 B, nested absmax 21,760 B, tables"),
            Item(n_bytes=8 * 5_120 * 4, kind=Kind.ADAPTER, owner=f"{up}.lora_A.default.weight", born=PREPARE,
                 because="8 x 5,120 x 4 B"),
            Item(n_bytes=8 * 5_120 * 4, kind=Kind.GRADIENT, owner=f"{up}.lora_A.default.weight", born=BACKWARD_2,
                 dies=END_2, because="as the parameter"),
            Item(n_bytes=8 * 5_120 * 8, kind=Kind.OPTIMIZER_STATE, owner=f"{up}.lora_A.default.weight", born=STEP_1,
                 because="2 x 8 x 5,120 x 4 B (below 100,000 elements: not paged)"),
            Item(n_bytes=8 * 17_408 * 8, kind=Kind.OPTIMIZER_STATE, owner=f"{up}.lora_B.default.weight", born=STEP_1,
                 space="managed", because="2 x 17,408 x 8 x 4 B"),
        ]  # fmt: skip
    return items


def _transient() -> list[Item]:
    """What is alive at the loss of step 2 only."""
    return [
        Item(n_bytes=41 * 2_048 * 5_120 * 4, kind=Kind.CHECKPOINT, owner="model.layers.{0..39} input", born=LOSS_2,
             dies=AFTER_LOSS, count=41, because="1 x 2,048 x 5,120 x 4 B (fp32 hidden states)"),
        Item(n_bytes=2 * 2_048 * 151_936 * 4, kind=Kind.LOGITS, owner="cross-entropy", born=LOSS_2, dies=AFTER_LOSS,
             count=2, because=f"1 {TIMES} 2,048 {TIMES} 151,936 {TIMES} 4 B"),
        Item(n_bytes=2_048 * 151_936 * 2, kind=Kind.LOGITS, owner="lm_head output", born=LOSS_2, dies=AFTER_LOSS,
             because="1 x 2,048 x 151,936 x 2 B"),
        Item(n_bytes=2_048 * 8, kind=Kind.INTERMEDIATE, owner="shifted labels", born=LOSS_2, dies=AFTER_LOSS,
             because="2,048 x 8 B"),
        Item(n_bytes=8_519_680, kind=Kind.WORKSPACE, owner="cuBLAS, main thread", born=BACKWARD_1,
             because=":4096:2:16:8"),
        Item(n_bytes=512, kind=Kind.MODULE_BUFFER, owner="model.rotary_emb.inv_freq", born=LOAD, because="128 x 4 B"),
    ]  # fmt: skip


def make_ledger(**changes: object) -> Ledger:
    items = (*_resident(), *_transient())
    requested = sum(item.n_bytes for item in items if item.space == "gpu" and item.alive(LOSS_2))
    paged = sum(item.n_bytes for item in items if item.space == "managed")
    allocated = requested + 1_234_567
    reserved = allocated + 1_900 * MIB
    fields = {
        "instrument": "estimate",
        "job": Job(model="Qwen/Qwen3-14B"),
        "model": "Qwen/Qwen3-14B",
        "device": "NVIDIA A100-SXM4-80GB",
        "stack": {"reentrant": True},
        "versions": {"torch": "2.14.1", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"},
        "parameters": Parameters(14_800_419_840, 32_112_640),
        "peak": Peak(
            moment=LOSS_2,
            requested_bytes=requested,
            allocated_bytes=allocated,
            reserved_bytes=reserved,
            device_bytes=Interval(reserved + 100 * MIB, reserved + 500 * MIB + paged),
        ),
        "paged_bytes": paged,
        "items": items,
        "readings": (),
        "assumptions": ("Every position carries a label.",),
        "warnings": ("The sequence of 2048 is only an example of a warning.",),
    }
    return Ledger(**{**fields, **changes})


def make_rule() -> RuleOfThumb:
    return rule_of_thumb(14_768_307_200, 32_112_640, hidden=5120, layers=40)


def make_verdict(ledger: Ledger, card: str, capacity_bytes: int, outcome: str, because: str) -> Verdict:
    parts = (
        Part("reserved", Interval(ledger.peak.reserved_bytes, ledger.peak.reserved_bytes), "segments"),
        Part("CUDA context", Interval(100 * MIB, 500 * MIB), "a prior"),
        Part("paged optimizer state", Interval(0, ledger.paged_bytes), "managed memory"),
    )
    floor_bytes = ledger.peak.allocated_bytes + 100 * MIB
    return Verdict(card=card, capacity_bytes=capacity_bytes, parts=parts, floor_bytes=floor_bytes, lower_bound=False,
                   outcome=outcome, because=because)  # fmt: skip


class PrintedRow(NamedTuple):
    """A line of the table as a reader sees it; amounts in thousandths."""

    label: str
    indented: bool
    low: int
    high: int


_ROW = re.compile(
    r"(?P<indent>  )?(?P<label>\S.*?)\s{2,}(?P<low><?-?\d+\.\d{3})(?: to (?P<high><?-?\d+\.\d{3}))?(?:\s|$)"
)


def _thousandths(text: str) -> int:
    return 0 if text.startswith("<") else round(float(text) * 1000)


def _read_rows(text: str) -> list[PrintedRow]:
    found = [_ROW.match(line.replace("|", " ")) for line in text.splitlines()]
    return [
        PrintedRow(row["label"], bool(row["indent"]), _thousandths(row["low"]), _thousandths(row["high"] or row["low"]))
        for row in found
        if row
    ]


@pytest.fixture(scope="session")
def read_rows() -> Callable[[str], list[PrintedRow]]:
    """The rows of a printed table, read back."""
    return _read_rows


@pytest.fixture(scope="session")
def printed() -> Callable[..., str]:
    """What a renderer prints on a terminal of some width and encoding."""

    def capture(render: Callable[..., None], *arguments: object, width: int = 80, encoding: str = "utf-8") -> str:
        raw = io.BytesIO()
        with io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True) as out:
            render(Console(file=out, width=width, highlight=False), *arguments)
            return raw.getvalue().decode(encoding)

    return capture


@pytest.fixture
def ledger() -> Ledger:
    return make_ledger()


@pytest.fixture
def view(ledger: Ledger) -> EstimateView:
    cards = (
        make_verdict(ledger, "NVIDIA GeForce RTX 4060", 8_188 * MIB, "does not fit", "needs at least 16.4 GiB"),
        make_verdict(ledger, "NVIDIA GeForce RTX 4090", 24_080 * MIB, "fits", "needs at most 18.8 GiB"),
    )
    return EstimateView(ledger=ledger, rule=make_rule(), verdicts=cards, other_stacks={"plain": 12 * GIB})
