"""transformers' Trainer with peft, as its documentation shows it: the collator passes ids and labels, and no mask.

The Trainer is subclassed only to be told where one phase ends and the next begins, and to name the scalars that it
keeps on the GPU; what it holds, and for how long, is its own.
"""

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qmem.ledger import Kind
from qmem.profiler.names import Named, name_tensor, optimizer_tensors
from qmem.profiler.prepare import enable_checkpointing
from qmem.profiler.stacks.plain import random_ids

if TYPE_CHECKING:
    from qmem.profiler.stacks import Run


def run_hf(run: "Run") -> None:
    """Build the Trainer and let it train."""
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    if run.job.checkpointing and run.job.has_adapter and not run.facts.kbit_preparation:
        enable_checkpointing(run.model, run.job, run.facts)
    with TemporaryDirectory() as folder:
        trainer = _make_trainer(run, folder)
        run.meter.sources.append(lambda: _trainer_tensors(run, trainer))
        # What train() allocates before it fetches (the running loss) belongs to the first step.
        run.meter.enter("forward", 1)
        trainer.train()


def _arguments(run: "Run", folder: str) -> Any:
    from transformers import TrainingArguments  # noqa: PLC0415

    job, facts = run.job, run.facts
    return TrainingArguments(
        output_dir=folder,
        bf16=facts.autocast and job.compute_dtype != "fp16",
        fp16=facts.autocast and job.compute_dtype == "fp16",
        gradient_checkpointing=job.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": facts.reentrant} if job.checkpointing else None,
        optim=job.optimizer,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.grad_accum,
        max_steps=run.steps,
        max_grad_norm=1.0 if facts.clip_gradients else 0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=run.steps + 1,
    )


def _make_trainer(run: "Run", folder: str) -> Any:
    """A Trainer that tells its phases.  The class is made here: its base is not imported before."""
    from transformers import Trainer  # noqa: PLC0415

    meter = run.meter

    class MeasuredTrainer(Trainer):
        """Reports phases; changes nothing."""

        def __init__(self, **settings: Any) -> None:
            self.kept = _Kept()
            super().__init__(**settings)
            self.micro_step = 0
            run_backward = self.accelerator.backward

            def backward(loss: Any, **keywords: Any) -> None:
                meter.enter("backward")
                run_backward(loss, **keywords)

            self.accelerator.backward = backward

        def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
            step = self.state.global_step + 1
            run.begins(step)
            meter.enter("forward", step)
            self.micro_step = 1
            fetched = super().get_batch_samples(*arguments, **keywords)
            self.kept.batches(*fetched)
            return fetched

        def training_step(self, *arguments: Any, **keywords: Any) -> Any:
            loss = super().training_step(*arguments, **keywords)
            step = self.state.global_step + 1
            self.micro_step += 1
            if self.micro_step > run.job.grad_accum:
                meter.enter("optimizer step", step)
            else:
                meter.enter("forward", step, self.micro_step)
            run.declare(loss, "the loss: the Trainer only looks whether it is a number")
            return self.kept.scalar(_LOSS, loss)

        def _clip_grad_norm(self, *arguments: Any, **keywords: Any) -> Any:
            norm = super()._clip_grad_norm(*arguments, **keywords)  # type: ignore[no-untyped-call]
            run.declare(norm, "the gradient norm: it is logged")
            return self.kept.scalar(_NORM, norm)

    trainer = MeasuredTrainer(model=run.model, args=_arguments(run, folder), train_dataset=_make_dataset(run))
    trainer.add_callback(_closing_callback(run))
    return trainer


def _closing_callback(run: "Run") -> Any:
    """Closes the optimizer step where the Trainer says that the step is over."""
    from transformers import TrainerCallback  # noqa: PLC0415

    class Closing(TrainerCallback):
        """Tells the end of a step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            run.meter.close()

    return Closing()


def _make_dataset(run: "Run") -> Any:
    import torch  # noqa: PLC0415

    job, vocab_size = run.job, run.architecture.vocab_size

    class RandomTokens(torch.utils.data.Dataset[dict[str, Any]]):
        """Sequences of full length, every position a label."""

        def __len__(self) -> int:
            return job.batch * job.grad_accum * run.steps

        def __getitem__(self, index: int) -> dict[str, Any]:
            ids = random_ids(1, job.seq, vocab_size)[0]
            return {"input_ids": ids, "labels": ids.clone()}

    return RandomTokens()


class _Kept:
    """Small tensors that the Trainer keeps, by weak reference: being named must not keep them alive."""

    def __init__(self) -> None:
        self._references: dict[tuple[str, Kind, str], list[Any]] = {}

    def batches(self, batches: Any, n_labelled: Any) -> None:
        """What was fetched for a step."""
        tensors = [tensor for batch in batches for tensor in batch.values()]
        self._keep(("batch", Kind.INTERMEDIATE, "input ids and labels"), tensors)
        self._keep(("batch", Kind.INTERMEDIATE, "labelled tokens"), [n_labelled])

    def scalar(self, tag: tuple[str, Kind, str], tensor: Any) -> Any:
        """Remember a scalar, and hand it on."""
        self._keep(tag, [tensor])
        return tensor

    def _keep(self, tag: tuple[str, Kind, str], tensors: list[Any]) -> None:
        self._references[tag] = [weakref.ref(tensor) for tensor in tensors if getattr(tensor, "is_cuda", False)]

    def named(self) -> Iterator[Named]:
        """Those that are still alive."""
        for tag, references in self._references.items():
            yield from (_tagged(tag, tensor) for reference in references if (tensor := reference()) is not None)


_LOSS = ("loss", Kind.LOGITS, "of the micro-step")
_NORM = ("optimizer step", Kind.OPTIMIZER_TEMPORARY, "gradient norm")
_RUNNING_LOSS = ("batch", Kind.INTERMEDIATE, "running loss")


def _tagged(tag: tuple[str, Kind, str], tensor: Any) -> Named:
    owner, kind, what = tag
    named = name_tensor(owner, kind, tensor)
    return named._replace(because=f"{what}: {named.because}")


def _trainer_tensors(run: "Run", trainer: Any) -> Iterator[Named]:
    if trainer.optimizer is not None:
        yield from optimizer_tensors(run.model, getattr(trainer.optimizer, "optimizer", trainer.optimizer))
    running = getattr(trainer, "_tr_loss", None)
    if getattr(running, "is_cuda", False):
        yield _tagged(_RUNNING_LOSS, running)
    yield from trainer.kept.named()
