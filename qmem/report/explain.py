"""``--explain KIND``: the derivation of one row, holding by holding, with numbers and formulas.

It owns the words a kind is known by and the grouping of equal holdings; the amounts are the table's own.
"""

import re
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmem.errors import UsageError
from qmem.ledger import Item, Kind, Ledger
from qmem.ledger.series import number_ranges
from qmem.report.breakdown import Row, breakdown
from qmem.report.tables import new_table, print_table
from qmem.report.text import Spell, spelling, thousandths

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PAGED = "paged"

MOST_LINES = 24
"""Holdings that are shown one by one, the largest; the rest of a row is one line."""

_WORDS = {
    "4-bit data": Kind.BASE_WEIGHT, "8-bit data": Kind.BASE_WEIGHT, "packed weights": Kind.BASE_WEIGHT,
    "absmax": Kind.QUANT_STATE, "quant state": Kind.QUANT_STATE, "quantization": Kind.QUANT_STATE,
    "16-bit": Kind.WEIGHT_16BIT, "bf16 weight": Kind.WEIGHT_16BIT, "fp16 weight": Kind.WEIGHT_16BIT,
    "fp32": Kind.WEIGHT_32BIT, "32-bit weight": Kind.WEIGHT_32BIT,
    "lora": Kind.LORA_AND_ADAMW, "adamw": Kind.LORA_AND_ADAMW, "lora weight": Kind.ADAPTER,
    "grad": Kind.GRADIENT, "optimizer": Kind.OPTIMIZER_STATE, "optimizer state on the gpu": Kind.OPTIMIZER_STATE,
    "hidden state": Kind.CHECKPOINT, "loss": Kind.LOGITS, "logit": Kind.LOGITS,
    "dequantized": Kind.DEQUANTIZED, "cublas": Kind.WORKSPACE, "temporary": Kind.OPTIMIZER_TEMPORARY,
    "optimizer temporaries": Kind.OPTIMIZER_TEMPORARY, "cuda context": Kind.CONTEXT, "kept": Kind.KEPT,
}  # fmt: skip
"""Words for kinds besides their own labels and headings, in small letters; a plural s is ignored."""

_BY_DEFINITION = {
    Kind.ROUNDING: "allocated less requested: the allocator's 512-byte grain and the unsplit tails of its blocks",
    Kind.CACHE: "peak reserved less peak allocated: segments that the allocator holds and has not handed out",
    Kind.CONTEXT: "device less reserved and paged state: CUDA context and loaded kernels, a prior",
    Kind.UNEXPLAINED: "the total requested less all items",
}


class _Group(NamedTuple):
    """Equal holdings written as one line; ``owner`` names them all, ``n_tensors``, ``n_bytes`` are theirs together."""

    owner: str
    n_tensors: int
    n_bytes: int
    like: Item


def render_explanation(console: Console, ledger: Ledger, kind_text: str) -> None:
    """Print how each row of a kind, or of a heading, comes about at the ledger's peak.

    Raises:
        UsageError: ``kind_text`` names no kind, or one that this ledger has no row of.
    """
    rows = _rows(ledger, kind_text)
    console.print(Text(f"{ledger.model}, instrument: {ledger.instrument}", style="dim"))
    for row in rows:
        _print_row(console, ledger, row)


def parse_kind(text: str) -> Kind:
    """The kind meant by a label (``gradient``), a heading (``weights``), a path or a common word (``logits``).

    Raises:
        UsageError: no kind is called so.
    """
    labels = {name.lower(): kind for kind in Kind for name in (kind.label, kind.value)}
    kinds = {_singular(name): kind for name, kind in {**_WORDS, **labels}.items()}
    kind = kinds.get(_singular(text))
    if kind is None:
        raise UsageError(f"there is no kind of memory called {text!r}", hint=f"the kinds are {_all_kinds()}")
    return kind


def _singular(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split()).removesuffix("s")


def _all_kinds() -> str:
    return ", ".join(kind.label for kind in Kind) + f", {_PAGED}"


def _rows(ledger: Ledger, kind_text: str) -> list[Row]:
    rows = breakdown(ledger).rows
    if _PAGED in kind_text.lower():
        label, found = "paged optimizer state", [row for row in rows if _is_paged(row)]
    else:
        kind = parse_kind(kind_text)
        label, found = kind.label, [row for row in rows if kind in (row.kind, row.kind.heading)]
    if not found:
        known = ", ".join(row.label for row in rows)
        raise UsageError(f"this job has no {label} at any moment", hint=f"it has {known}")
    return found


def _is_paged(row: Row) -> bool:
    return row.waterline == "device" and row.kind is Kind.OPTIMIZER_STATE


def _print_row(console: Console, ledger: Ledger, row: Row) -> None:
    spell = spelling(console.encoding)
    items = _items(ledger, row)
    console.print(Text(spell(f"{row.kind.heading.label}: {row.label}, at the {ledger.peak.moment}"), style="bold"))
    if items:
        print_table(console, _table(row, _grouped(items), spell))
    else:
        reason = _BY_DEFINITION.get(row.kind, "nothing of it is alive at the peak")
        console.print(Text(spell(f"{thousandths(row.units, row.n_bytes)} GiB: {reason}")))
    console.print()


def _items(ledger: Ledger, row: Row) -> list[Item]:
    """The holdings behind a row; cache and context have none, they are differences."""
    if _is_paged(row):
        return [item for item in ledger.items if item.space == "managed"]
    return [item for item in ledger.at(ledger.peak.moment) if item.kind is row.kind]


def _grouped(items: list[Item]) -> list[_Group]:
    """Holdings that differ only in the layer they belong to, together; largest first."""
    alike: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        each = item.n_bytes // item.count
        key = (_NUMBER.sub("*", item.owner, count=1), each, item.because, str(item.born), str(item.dies))
        alike.setdefault(key, []).append(item)
    groups = [_group(members) for members in alike.values()]
    return sorted(groups, key=lambda group: group.n_bytes, reverse=True)


def _group(members: list[Item]) -> _Group:
    numbers = sorted({int(found[0]) for item in members if (found := _NUMBER.search(item.owner))})
    first = members[0]
    owner = _NUMBER.sub(f"{{{number_ranges(numbers)}}}", first.owner, count=1) if len(numbers) > 1 else first.owner
    return _Group(owner, sum(item.count for item in members), sum(item.n_bytes for item in members), first)


def _table(row: Row, groups: list[_Group], spell: Spell) -> Table:
    table = new_table(["holding"], ["bytes"])
    for group in groups[:MOST_LINES]:
        table.add_row(Text(spell(_derivation(group))), f"{group.n_bytes:,}")
    rest = groups[MOST_LINES:]
    if rest:
        table.add_row(f"{len(rest)} smaller holdings (--json lists them)", f"{sum(group.n_bytes for group in rest):,}")
    not_itemized = row.n_bytes.high - sum(group.n_bytes for group in groups)
    if not_itemized:
        table.add_row("not itemized", f"{not_itemized:,}")
    table.add_section()
    amount = thousandths(row.units, row.n_bytes)
    table.add_row(f"{row.label}: {amount} GiB", f"{row.n_bytes.high:,}", style="bold")
    return table


def _derivation(group: _Group) -> str:
    """The owner, then the formula and the life of the holding, each on its line."""
    formula = [group.like.because] if group.like.because else []
    if group.n_tensors > 1:
        each, rest = divmod(group.n_bytes, group.n_tensors)
        formula = [f"{group.n_tensors:,} tensors" if rest else f"{group.n_tensors:,} x {each:,} B", *formula]
    return "\n  ".join([group.owner, *([f"= {': '.join(formula)}"] if formula else []), _life(group.like)])


def _life(item: Item) -> str:
    if item.dies is None:
        return f"from {item.born} to the end"
    born, dies = str(item.born), str(item.dies)
    return f"within {born}" if born == dies else f"from {born} to {dies}"
