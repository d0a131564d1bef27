"""The program of the whole job: load, prepare, and two training steps (the first has no optimizer state yet).

With gradient accumulation the second micro-step stands for all later ones: gradients are there by then, and no
later one differs.  Sources: transformers 5.23.0 ``trainer.py`` (``training_step``, ``_inner_training_loop``);
accelerate 1.15.0 ``utils/operations.py`` (``ConvertOutputsToFp32``).
"""

from typing import NamedTuple

from qmem.architecture import AdapterPlan, Architecture
from qmem.catalogue.stacks import StackFacts
from qmem.estimator.fused_head import Head, Scores, fused_head, sft_loss
from qmem.estimator.loss import divided
from qmem.estimator.loss_scaling import GradScaler
from qmem.estimator.model import PaperModel, Program
from qmem.estimator.operations import scale_in_place, to, use_cublas
from qmem.estimator.optimizers import PaperOptimizer
from qmem.estimator.paper import Gpu, Paper, PaperTensor, Region, Role, empty
from qmem.estimator.slicing import taken_whole
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


class Batch(NamedTuple):
    """The inputs of a micro-step on the GPU; a bare loop passes the ids as labels too, and a mask only if asked to."""

    input_ids: PaperTensor
    labels: PaperTensor
    mask: PaperTensor | None = None


def walk(
    job: Job,
    architecture: Architecture,
    plan: AdapterPlan,
    quantized: frozenset[str],
    facts: StackFacts,
    gpu: Gpu,
    n_trained: int,
    *,
    steady: bool = False,
    brief: bool = False,
) -> Walk:
    """Run the job on paper.

    ``n_trained`` counts the trained parameters of the whole model, if this one is cut.  ``steady`` runs the second
    step only, with what the first one leaves behind: half the work, where only the fullest moment is asked for.
    ``brief`` leaves out what dies within a turn of a loop within a layer (``middle_chunks.py``).
    """
    paper = Paper(gpu, facts.older, brief=brief)
    model = PaperModel(paper, architecture, job)
    paper.begin_phase("load")
    model.load(quantized)
    paper.begin_phase("prepare", empties_cache=True)
    if facts.kbit_preparation:
        model.prepare_for_kbit_training(facts)
        paper.begin_phase("prepare", empties_cache=not facts.older.keeps_cache)
    model.adapt(plan, facts)
    program = model.program(facts)
    exempt = program.exempt if facts.trainer_loop else None
    optimizer = PaperOptimizer(paper, job.optimizer, program.trainable, n_trained, exempt)
    head = model.head_factors() if facts.fused_head else None
    loop = _Loop(paper, job, facts, program, optimizer, head)
    if steady:
        loop.leave_first_step_behind()
    for step in (2,) if steady else (1, 2):
        loop.step(step)
    paper.begin_phase("rest", 2)
    return Walk(paper.finish(), paper.regions)


class _Loop:
    """The training loop: transformers' Trainer, or a bare function that is called once a step.

    Attributes:
        batches: what the Trainer has fetched; it keeps the last step's until the next are there.
        scalars: the running loss, the number of labelled tokens and the last loss, which the Trainer keeps.
        scaler: scales the loss where the Trainer computes in fp16.
        fused: what a fused head multiplies by, where the stack has one.
    """

    def __init__(
        self,
        paper: Paper,
        job: Job,
        facts: StackFacts,
        program: Program,
        optimizer: PaperOptimizer,
        fused: Head | None = None,
    ) -> None:
        self.paper, self.job, self.facts, self.program, self.optimizer = paper, job, facts, program, optimizer
        self.fused = fused
        self.batches: list[Batch] = []
        self.scalars: list[PaperTensor | None] = []
        self.micro_steps = min(job.grad_accum, 2)
        scales_loss = facts.trainer_loop and facts.autocast and job.compute_dtype == "fp16"
        self.scaler = GradScaler(paper) if scales_loss else None

    def leave_first_step_behind(self) -> None:
        """The optimizer's state, and the workspaces of both threads that multiply."""
        self.paper.begin_phase("rest", 1)
        self.optimizer.step(first=True)
        for thread in ("autograd", "main"):
            self.paper.thread = thread
            use_cublas(self.paper)

    def step(self, step: int) -> None:
        """One optimizer step with its micro-steps; the Trainer begins with an empty cache (``free_memory``)."""
        self.paper.begin_phase("forward", step, empties_cache=step == 1 and self.facts.trainer_loop)
        if self.facts.trainer_loop:
            self._trainer_step(step)
        else:
            self._plain_step(step)

    def _trainer_step(self, step: int) -> None:
        """``_inner_training_loop``: a micro-step's loss lives until the next one's ``training_step`` has returned."""
        self._fetch()
        for micro_step in range(1, self.micro_steps + 1):
            if micro_step > 1:
                self.paper.begin_phase("forward", step, micro_step)
                self._drop_older_loss()
            self._training_step(self.batches[micro_step - 1], step, micro_step)
        self._optimizer_step(step)

    def _training_step(self, batch: Batch, step: int, micro_step: int) -> None:
        """``training_step``: the loss is divided once more by accelerate, whatever the accumulation."""
        loss = self._loss(batch, (step, micro_step))
        self.paper.begin_phase("backward", step, micro_step)
        self._run_trainers_backward(divided(loss))
        self.paper.enter_layer(None)
        self.scalars.append(loss.detached())

    def _drop_older_loss(self) -> None:
        """``tr_loss_step = self.training_step(...)``: the last loss takes the place of the one before."""
        self.scalars[2:-1] = []

    def _loss(self, batch: Batch, at: tuple[int, int]) -> PaperTensor:
        """``compute_loss``, which multiplies by the number of processes in the end: transformers does it in place."""
        if self.fused is None:
            return scale_in_place(_forward(self, batch, at))
        return sft_loss(_scores(self, self.fused, batch, at))

    def _run_trainers_backward(self, loss: PaperTensor) -> None:
        run_backward(self.scaler.scaled(loss) if self.scaler else loss)

    def _fetch(self) -> None:
        """``get_batch_samples``: all micro-batches of the step, and how many of their labels count."""
        paper, job = self.paper, self.job
        paper.role = _INPUTS
        if not self.scalars:
            paper.rule = "running loss"
            self.scalars = [empty(paper, (), "fp32")]
        paper.rule = "input ids and labels"
        fetched = []
        for _ in range(job.grad_accum):
            ids, labels = (empty(paper, (job.batch, job.seq), "int64") for _ in "il")
            fetched.append(Batch(ids, labels, self._mask()))
        paper.rule = "labelled tokens"
        self.scalars[1:2] = [self._labelled()]
        self.batches = fetched

    def _labelled(self) -> PaperTensor | None:
        """How many labels of the step count, which the Trainer keeps; an older one reads them."""
        paper, job = self.paper, self.job
        if paper.older.counts_on_host:
            _read_labelled(paper, job)
            return None
        for _ in range(job.grad_accum):
            labelled = empty(paper, (job.batch, job.seq - 1), "bool")
            counted = empty(paper, (job.batch, job.seq - 1), "int64")
            del labelled, counted
        return empty(paper, (), "fp32")

    def _mask(self) -> PaperTensor | None:
        """The mask of ones that a collator adds."""
        return empty(self.paper, (self.job.batch, self.job.seq), "int64") if self.facts.attention_mask else None

    def _plain_step(self, step: int) -> None:
        """A training function: its locals (the batch, the last loss with its graph) go when it returns."""
        paper = self.paper
        for micro_step in range(1, self.micro_steps + 1):
            if micro_step > 1:
                paper.begin_phase("forward", step, micro_step)
            paper.role, paper.rule = _INPUTS, "input ids"
            input_ids = empty(paper, (self.job.batch, self.job.seq), "int64")
            mask = self._mask()
            loss = _forward(self, Batch(input_ids, input_ids, mask), (step, micro_step))
            paper.begin_phase("backward", step, micro_step)
            if self.job.grad_accum > 1:
                loss = divided(loss)
            run_backward(loss)
            paper.enter_layer(None)
        self._optimizer_step(step)

    def _optimizer_step(self, step: int) -> None:
        self.paper.begin_phase("optimizer step", step)
        self._drop_older_loss()
        if self.scaler:
            self.scaler.unscale()
        # The Trainer takes the norm, to log it, even where it does not clip.
        if self.facts.clip_gradients or self.facts.trainer_loop:
            self.optimizer.clip_gradients()
        self.optimizer.step(first=step == 1)
        if self.scaler:
            self.scaler.update()
        self.optimizer.zero_grad()


def _read_labelled(paper: Paper, job: Job) -> None:
    """``sum([batch["labels"].ne(-100).sum() for batch in batches]).item()``."""
    counts = []
    for _ in range(job.grad_accum):
        labelled = empty(paper, (job.batch, job.seq), "bool")
        counts.append(empty(paper, (), "int64"))
        widened = empty(paper, (job.batch, job.seq), "int64")
        del widened, labelled
    total = None
    for _ in counts:
        total = empty(paper, (), "int64")
    del total, counts


def _forward(loop: _Loop, batch: Batch, at: tuple[int, int]) -> PaperTensor:
    """The model's forward, under autocast where the stack has it: the loss.

    The cast weights in autocast's cache live until it ends.  Then accelerate, under the Trainer, makes the returned
    logits fp32, which frees the 16-bit ones only after.
    """
    paper, facts = loop.paper, loop.facts
    hidden_states = _decode(loop, batch, at)
    paper.role = _HEAD
    logits = loop.program.head(taken_whole(hidden_states, 3 if loop.program.slices_hidden else 0))
    paper.role = _LOSS
    loss = loop.program.loss(logits, batch.labels, token_mean=facts.token_mean)
    del hidden_states
    paper.end_autocast()
    if facts.autocast and facts.trainer_loop:
        converted = [to(returned, "fp32") for returned in (logits, *loop.program.others)]
        del converted
    loop.program.others.clear()
    return loss


def _scores(loop: _Loop, head: Head, batch: Batch, at: tuple[int, int]) -> Scores:
    """The same with TRL's fused head, whose scores are fp32 already: there are no logits to convert."""
    hidden_states = _decode(loop, batch, at)
    loop.paper.role = _LOSS
    scores = fused_head(hidden_states, head)
    del hidden_states
    loop.paper.end_autocast()
    return scores


def _decode(loop: _Loop, batch: Batch, at: tuple[int, int]) -> PaperTensor:
    """The decoder's last hidden state, with which the loss begins."""
    paper, job = loop.paper, loop.job
    if loop.facts.autocast:
        paper.autocast_dtype = job.compute_dtype if job.compute_dtype != "fp32" else "bf16"
    paper.attention_mask = batch.mask
    hidden_states: PaperTensor = loop.program.decoder(batch.input_ids)
    paper.attention_mask = None
    paper.begin_phase("loss", *at)
    return hidden_states
