"""``qmem estimate MODEL``: the ledger of a job from a walk through its step; no GPU, no weights, no torch."""

from typing import TYPE_CHECKING, Any

import click

from qmem.cli.command import VerbCommand, json_option
from qmem.cli.job_options import job_from_flags, job_parameters
from qmem.cli.streams import result_console, write_file, write_note, write_result
from qmem.errors import EXIT_FINDING, EXIT_OK, UsageError

if TYPE_CHECKING:
    from qmem.catalogue import Gpu
    from qmem.estimator.rule_of_thumb import RuleOfThumb
    from qmem.job import Job
    from qmem.ledger import Ledger

EXCLUSIVE = (
    ("as_json", "explain", "--json and --explain: the JSON holds every derivation already"),
    ("rule_of_thumb", "explain", "--rule-of-thumb and --explain: the rule prints its own formulas"),
    ("rule_of_thumb", "trace", "--rule-of-thumb and --trace: the rule has no events"),
    ("rule_of_thumb", "replay", "--rule-of-thumb and --replay: the rule knows no allocator"),
    ("rule_of_thumb", "gpu", "--rule-of-thumb and --gpu: the rule judges no card"),
)
"""Pairs of options that contradict each other, and why."""


def show_estimate(**given: Any) -> int:
    """Print what was asked for; the exit code is a finding only where ``--gpu`` names a card that is too small."""
    _refuse_contradictions(given)
    if given["rule_of_thumb"]:
        return _show_rule_alone(given)
    from qmem.catalogue import find_gpu
    from qmem.estimator import estimate

    job = job_from_flags(given)
    gpu = find_gpu(given["gpu"]) if given["gpu"] is not None else None
    ledger = estimate(job, gpu, replay="full" if given["replay"] else "quick")
    if given["trace"] is not None:
        _store_trace(given["trace"], job, gpu)
    if given["explain"] is not None:
        _show_explanation(ledger, given["explain"])
    elif given["as_json"]:
        _show_json(ledger)
    else:
        _show_page(ledger, gpu)
    return _exit_code(ledger, gpu)


def _refuse_contradictions(given: dict[str, Any]) -> None:
    for one, other, why in EXCLUSIVE:
        if given[one] and given[other]:
            raise UsageError(f"contradictory: {why}", hint="leave one of them out")
    if given["params"] is not None and not given["rule_of_thumb"]:
        raise UsageError("--params counts for the rule of thumb only", hint="add --rule-of-thumb, or leave it out")


def _exit_code(ledger: "Ledger", gpu: "Gpu | None") -> int:
    from qmem.planner import verdict

    too_small = gpu is not None and verdict(ledger, gpu).outcome == "does not fit"
    return EXIT_FINDING if too_small else EXIT_OK


def _show_json(ledger: "Ledger") -> None:
    from qmem.ledger import to_json

    write_result(to_json(ledger).decode() + "\n")
    for warning in ledger.warnings:
        write_note(f"warning: {warning}")


def _show_explanation(ledger: "Ledger", kind: str) -> None:
    from qmem.report.explain import render_explanation

    console = result_console()
    with console.capture() as captured:
        render_explanation(console, ledger, kind)
    write_result(captured.get())


def _show_page(ledger: "Ledger", gpu: "Gpu | None") -> None:
    from qmem.catalogue import COMMON_GPUS, find_gpu
    from qmem.planner import verdict
    from qmem.report.terminal import render_estimate
    from qmem.report.view import EstimateView

    cards = tuple(map(find_gpu, COMMON_GPUS)) if gpu is None else (gpu,)
    view = EstimateView(
        ledger=ledger,
        rule=_rule_of_job(ledger.job),
        verdicts=tuple(verdict(ledger, card) for card in cards),
        other_stacks=_other_stacks(ledger.job, gpu),
    )
    console = result_console()
    with console.capture() as captured:
        render_estimate(console, view)
    write_result(captured.get())


def _other_stacks(job: "Job", gpu: "Gpu | None") -> dict[str, int]:
    """Bytes requested at the peak of the same job under the other stacks that can run it."""
    from qmem.catalogue.stacks import stack_names
    from qmem.estimator import peak_requested

    peaks = {}
    for name in stack_names():
        if name != job.stack.partition("@")[0]:
            try:
                peaks[name] = peak_requested(job.replace(stack=name), gpu)
            except UsageError:  # a fact that the job sets contradicts that stack
                continue
    return peaks


def _rule_of_job(job: "Job", n_parameters: int | None = None) -> "RuleOfThumb":
    """The hand calculation of a job; ``n_parameters`` takes the place of the model's own count."""
    from qmem.architecture import adapt, describe
    from qmem.catalogue import find_model
    from qmem.estimator.rule_of_thumb import rule_of_thumb

    model = describe(find_model(job.model).config)
    return rule_of_thumb(
        n_parameters or model.n_parameters,
        adapt(model, job).trainable,
        hidden=model.hidden_size,
        layers=model.n_layers,
        **_rule_settings(job),
    )


def _rule_settings(job: "Job") -> dict[str, Any]:
    return {
        "batch": job.batch,
        "seq": job.seq,
        "quant": job.effective_quant,
        "double_quant": job.double_quant,
        "paged": job.optimizer.startswith("paged_"),
        "dtype": job.dtype,
    }


def _show_rule_alone(given: dict[str, Any]) -> int:
    rule = _rule_alone(given)
    if given["as_json"]:
        import msgspec

        from qmem.ledger import SCHEMA_VERSION

        shown = {"schema_version": SCHEMA_VERSION, "rule_of_thumb": rule, "total": rule.total}
        write_result(msgspec.json.encode(shown).decode() + "\n")
        return EXIT_OK
    from qmem.report.rule import render_rule_of_thumb

    console = result_console()
    with console.capture() as captured:
        render_rule_of_thumb(console, rule)
    write_result(captured.get())
    return EXIT_OK


def _rule_alone(given: dict[str, Any]) -> "RuleOfThumb":
    """Of a model, of a number of parameters, or of a model's shape with another number."""
    from qmem.catalogue import find_model
    from qmem.estimator.rule_of_thumb import rule_of_thumb

    n_parameters = None if given["params"] is None else _n_parameters(given["params"])
    job = job_from_flags(given, nameless=n_parameters is not None)
    if n_parameters is not None and not job.model:
        return rule_of_thumb(n_parameters, **_rule_settings(job))
    for note in find_model(job.model).notes:
        write_note(note)
    return _rule_of_job(job, n_parameters)


def _n_parameters(number: float) -> int:
    if not 1 <= number < float("inf") or number != int(number):
        raise UsageError(f"--params is {number:g}, but must be a whole number of at least 1", hint="for example 14e9")
    return int(number)


def _store_trace(path: str, job: "Job", gpu: "Gpu | None") -> None:
    import msgspec

    from qmem.estimator import trace_of
    from qmem.ledger import SCHEMA_VERSION

    trace = trace_of(job, gpu)
    stored = {
        "schema_version": SCHEMA_VERSION,
        "job": job,
        "sizes": trace.sizes,
        "labels": trace.labels,
        "label_table": [label._asdict() for label in trace.label_table],
        "events": trace.events,
        "marks": [mark._asdict() for mark in trace.marks],
    }
    write_file(path, msgspec.json.encode(stored))


command = VerbCommand(
    "estimate",
    callback=show_estimate,
    params=[
        *job_parameters(),
        json_option(),
        click.Option(["--explain"], metavar="KIND", help="Print the derivation of a row, with numbers and source."),
        click.Option(["--trace"], metavar="FILE", help="Store every allocation and free of the walk in FILE."),
        click.Option(["--replay"], is_flag=True, help="Replay the caching allocator, for what it holds reserved."),
        click.Option(["--rule-of-thumb"], is_flag=True, help="Print the literature's hand calculation alone, in GB."),
        click.Option(["--params"], type=float, metavar="NUMBER", help="Parameters for --rule-of-thumb, as 14e9."),
    ],
    help="Where the memory of a fine-tuning job goes, when it peaks, and which cards it fits.\n\n"
    "MODEL is a name of qmem models, a mirror of one, a folder or config.json, or a hub id.",
    epilog="Examples: qmem estimate Qwen3-14B --rank 8; qmem estimate llama-3.1-8b --gpu rtx-4090 --seq 4096",
)
