"""``--rule-of-thumb`` alone on a terminal: the hand calculation line by line, in GB."""

from rich.console import Console
from rich.text import Text

from qmem.estimator.rule_of_thumb import RuleOfThumb
from qmem.ledger import Kind
from qmem.report.comparison import amounts
from qmem.report.tables import add_texts, new_table, print_table
from qmem.report.text import interval_gb, spelling

_NAMES = {
    Kind.ADAPTER: "LoRA weights",
    Kind.GRADIENT: "gradients",
    Kind.OPTIMIZER_STATE: "AdamW on the GPU",
    Kind.BUFFERS: "buffers and overhead",
}


def render_rule_of_thumb(console: Console, rule: RuleOfThumb) -> None:
    """Print the calculation; the lines without parentheses add up to the total."""
    spell = spelling(console.encoding)
    table = new_table(["rule of thumb"], ["GB"])
    add_texts(table, ["formula"])
    for line, amount in zip(rule.lines, amounts(rule), strict=True):
        table.add_row(_NAMES.get(line.kind, line.kind.label), amount, Text(spell(line.because)))
    table.add_section()
    table.add_row("total", interval_gb(rule.total), "weights + activations + buffers and overhead", style="bold")
    print_table(console, table)
    for sentence in rule.assumptions:
        console.print(Text(spell(sentence), style="dim"))
