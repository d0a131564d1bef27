"""Renew the goldens of every output form from ``golden/check.json``: ``python tests/gate/renew_goldens.py``."""

import json
from pathlib import Path

import msgspec
from rich.console import Console

from qmem.gate.judging import Verdict
from qmem.report.gate_formats import FORMATS
from qmem.report.gate_table import render_verdicts

GOLDEN = Path(__file__).with_name("golden")
FILES = {"json": "check.json", "markdown": "check.md", "github": "check.github", "junit": "check.xml",
         "benchmark": "check.benchmark.json"}  # fmt: skip
WIDTHS = (80, 200)


def stored() -> tuple[list[Verdict], list[str]]:
    """The verdicts, and the names of those that fail."""
    content = json.loads((GOLDEN / FILES["json"]).read_text())
    return msgspec.convert(content["verdicts"], list[Verdict]), content["failing"]


def table(verdicts: list[Verdict], width: int) -> str:
    """What a terminal shows."""
    console = Console(width=width, color_system=None, highlight=False, force_terminal=False)
    with console.capture() as captured:
        render_verdicts(console, verdicts)
    return captured.get()


if __name__ == "__main__":
    verdicts, failing = stored()
    for form, name in FILES.items():
        (GOLDEN / name).write_text(FORMATS[form](verdicts, failing))
    for width in WIDTHS:
        (GOLDEN / f"table-{width}.txt").write_text(table(verdicts, width))
