"""What both Trainer stacks share: telling where one phase ends and the next begins, and naming what the Trainer keeps.

The Trainer is subclassed only to be told that, and to name the scalars that it keeps on the GPU; what it holds, and
for how long, is its own.
"""

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qmem.ledger import Kind
from qmem.profiler.names import Named, name_tensor, optimizer_tensors

if TYPE_CHECKING:
    from qmem.profiler.stacks import Run

Tag = tuple[str, Kind, str]

_BATCH: Tag = ("batch", Kind.INTERMEDIATE, "input ids, labels and mask")
_N_LABELLED: Tag = ("batch", Kind.INTERMEDIATE, "labelled tokens")
_LOSS: Tag = ("loss", Kind.LOGITS, "of the micro-step")
_NORM: Tag = ("optimizer step", Kind.OPTIMIZER_TEMPORARY, "gradient norm")
_RUNNING_LOSS: Tag = ("batch", Kind.INTERMEDIATE, "running loss")
_SCALER: Tag = ("loss scaling", Kind.OPTIMIZER_TEMPORARY, "scale and growth tracker")


class TellsPhases:
    """Stands before a Trainer among a class's bases; reports phases and changes nothing."""

    accelerator: Any  # both are the Trainer's
    state: Any

    def __init__(self, run: "Run", **settings: Any) -> None:
        self.run = run
        self.kept = _Kept()
        self.micro_step = 0
        super().__init__(**settings)
        self._tell_backward()

    def _tell_backward(self) -> None:
        run_backward = self.accelerator.backward

        def backward(loss: Any, **keywords: Any) -> None:
            self.run.meter.enter("backward")
            run_backward(loss, **keywords)

        self.accelerator.backward = backward

    @property
    def _step(self) -> int:
        return int(self.state.global_step) + 1

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """A step begins: its micro-batches are fetched."""
        self.run.begins(self._step)
        self.run.meter.enter("forward", self._step)
        self.micro_step = 1
        fetched = super().get_batch_samples(*arguments, **keywords)  # type: ignore[misc]
        self.kept.batches(*fetched)
        return fetched

    def training_step(self, *arguments: Any, **keywords: Any) -> Any:
        """Forward and backward of a micro-step; after it comes the next one, or the optimizer."""
        loss = super().training_step(*arguments, **keywords)  # type: ignore[misc]
        self.micro_step += 1
        if self.micro_step > self.run.job.grad_accum:
            self.run.meter.enter("optimizer step", self._step)
        else:
            self.run.meter.enter("forward", self._step, self.micro_step)
        self.run.declare(loss, "the loss: the Trainer only looks whether it is a number")
        return self.kept.scalar(_LOSS, loss)

    def _clip_grad_norm(self, *arguments: Any, **keywords: Any) -> Any:
        norm = super()._clip_grad_norm(*arguments, **keywords)  # type: ignore[misc]
        self.run.declare(norm, "the gradient norm: it is logged")
        return self.kept.scalar(_NORM, norm)


def train(run: "Run", trainer: Any) -> None:
    """Let a Trainer that tells its phases train, and name what it keeps."""
    trainer.add_callback(_closing_callback(run))
    run.meter.sources.append(lambda: _trainer_tensors(run, trainer))
    # What train() allocates before it fetches (the running loss) belongs to the first step.
    run.meter.enter("forward", 1)
    trainer.train()


def training_arguments(run: "Run", folder: str) -> dict[str, Any]:
    """The keywords of ``TrainingArguments``, and so of its relatives, for a run."""
    job, facts = run.job, run.facts
    return {
        "output_dir": folder,
        "bf16": facts.autocast and job.compute_dtype != "fp16",
        "fp16": facts.autocast and job.compute_dtype == "fp16",
        "gradient_checkpointing": job.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": facts.reentrant} if job.checkpointing else None,
        "optim": job.optimizer,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.grad_accum,
        "max_steps": run.steps,
        "max_grad_norm": 1.0 if facts.clip_gradients else 0.0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": run.steps + 1,
    }


def n_sequences(run: "Run") -> int:
    """How many sequences a run takes, each once."""
    return run.job.batch * run.job.grad_accum * run.steps


def _closing_callback(run: "Run") -> Any:
    """Closes the optimizer step where the Trainer says that the step is over."""
    from transformers import TrainerCallback  # noqa: PLC0415

    class Closing(TrainerCallback):
        """Tells the end of a step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            run.meter.close()

    return Closing()


class _Kept:
    """Small tensors that the Trainer keeps, by weak reference: being named must not keep them alive."""

    def __init__(self) -> None:
        self._references: dict[Tag, list[Any]] = {}

    def batches(self, batches: Any, n_labelled: Any) -> None:
        """What was fetched for a step."""
        self._keep(_BATCH, [tensor for batch in batches for tensor in batch.values()])
        self._keep(_N_LABELLED, [n_labelled])

    def scalar(self, tag: Tag, tensor: Any) -> Any:
        """Remember a scalar, and hand it on."""
        self._keep(tag, [tensor])
        return tensor

    def _keep(self, tag: Tag, tensors: list[Any]) -> None:
        self._references[tag] = [weakref.ref(tensor) for tensor in tensors if getattr(tensor, "is_cuda", False)]

    def named(self) -> Iterator[Named]:
        """Those that are still alive."""
        for tag, references in self._references.items():
            yield from (_tagged(tag, tensor) for reference in references if (tensor := reference()) is not None)


def _tagged(tag: Tag, tensor: Any) -> Named:
    owner, kind, what = tag
    named = name_tensor(owner, kind, tensor)
    return named._replace(because=f"{what}: {named.because}")


def _trainer_tensors(run: "Run", trainer: Any) -> Iterator[Named]:
    if trainer.optimizer is not None:
        yield from optimizer_tensors(run.model, getattr(trainer.optimizer, "optimizer", trainer.optimizer))
    running = getattr(trainer, "_tr_loss", None)
    if getattr(running, "is_cuda", False):
        yield _tagged(_RUNNING_LOSS, running)
    scaler = getattr(trainer.accelerator, "scaler", None)
    kept = (getattr(scaler, name, None) for name in ("_scale", "_growth_tracker"))
    yield from (_tagged(_SCALER, tensor) for tensor in kept if getattr(tensor, "is_cuda", False))
    yield from trainer.kept.named()
