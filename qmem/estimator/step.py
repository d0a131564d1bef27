"""The program of the whole job: load, prepare, and two training steps (the first has no optimizer state yet).

With gradient accumulation the second micro-step stands for all later ones: gradients are there by then, and no
later one differs.  Sources: transformers 5.23.0 ``trainer.py`` (``training_step``, ``_inner_training_loop``);
accelerate 1.15.0 ``utils/operations.py`` (``ConvertOutputsToFp32``).
"""

from typing import NamedTuple

from qmem.architecture import AdapterPlan, Architecture
from qmem.catalogue.stacks import StackFacts
from qmem.estimator.loss import causal_lm_loss
from qmem.estimator.model import PaperModel, Program
from qmem.estimator.operations import to
from qmem.estimator.optimizers import PaperOptimizer
from qmem.estimator.paper import Gpu, Paper, PaperTensor, Region, Role, empty
from qmem.estimator.tape import run_backward
from qmem.job import Job
from qmem.ledger import Kind, Trace

_INPUTS = Role(Kind.INTERMEDIATE, "batch")
_HEAD = Role(Kind.LOGITS, "lm_head")
_LOSS = Role(Kind.LOGITS, "loss")


class Walk(NamedTuple):
    """What a walk leaves: the trace, and which stretches of it belong to a layer."""

    trace: Trace
    regions: list[Region]


def walk(
    job: Job,
    architecture: Architecture,
    plan: AdapterPlan,
    quantized: frozenset[str],
    facts: StackFacts,
    gpu: Gpu,
    n_trained: int,
) -> Walk:
    """Run the job on paper; ``n_trained`` counts the trained parameters of the whole model, if this one is cut."""
    paper = Paper(gpu)
    model = PaperModel(paper, architecture, job)
    paper.begin_phase("load")
    model.load(quantized)
    paper.begin_phase("prepare", empties_cache=True)
    if facts.kbit_preparation:
        model.prepare_for_kbit_training(facts)
        paper.begin_phase("prepare", empties_cache=True)
    model.adapt(plan, facts)
    program = model.program(facts)
    optimizer = PaperOptimizer(paper, job.optimizer, program.trainable, n_trained)
    run_step = _trainer_step if facts.trainer else _plain_step
    batches: list[Batch] = []
    for step in (1, 2):
        batches = run_step(paper, job, facts, program, optimizer, step)
    paper.begin_phase("rest", 2)
    return Walk(paper.finish(), paper.regions)


def _trainer_step(run: "_Run", step: int, held: list[Batch]) -> list[Batch]:
    raise NotImplementedError


def _forward(
    paper: Paper,
    job: Job,
    facts: StackFacts,
    program: Program,
    input_ids: PaperTensor,
    labels: PaperTensor,
    at: tuple[int, int],
) -> PaperTensor:
    """The model's forward, under autocast where the stack has it.

    The cast weights in autocast's cache live until it ends; then the returned logits are made fp32, which frees
    the 16-bit ones only after.
    """
    if facts.autocast:
        paper.autocast_dtype = job.compute_dtype if job.compute_dtype != "fp32" else "bf16"
    hidden_states = program.decoder(input_ids)
    paper.begin_phase("loss", *at)
    paper.role = _HEAD
    logits = program.head(hidden_states)
    paper.role = _LOSS
    loss = causal_lm_loss(logits, labels, token_mean=facts.token_mean)
    del hidden_states
    paper.end_autocast()
    if facts.autocast:
        converted = to(logits, "fp32")
        del converted
    return loss
