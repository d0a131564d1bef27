"""How a series of equal tensors is named: one owner for the tensors that layers repeat."""

import re

_LAYER = re.compile(r"\.\d+\.")


def series_name(owner: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` as a member of its series: ``model.layers.*.mlp.up_proj.weight``."""
    return _LAYER.sub(".*.", owner, count=1)


def with_range(owner: str, count: int, n_layers: int) -> str:
    """The series with the numbers it runs over, where it runs over all layers."""
    return owner.replace(".*.", f".{{0..{n_layers - 1}}}.") if count == n_layers else owner


def number_ranges(numbers: list[int]) -> str:
    """``0..39``, ``0,2..5``: sorted numbers with runs written by their ends."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("..".join(map(str, run)) for run in runs)
