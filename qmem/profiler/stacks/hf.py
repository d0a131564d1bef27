"""transformers' Trainer with peft, as its documentation shows it: the collator passes ids and labels.

A mask is passed only where the job says so (``attention_mask``).
"""

from typing import TYPE_CHECKING, Any

from qmem.profiler.prepare import enable_checkpointing
from qmem.profiler.stacks.plain import random_ids
from qmem.profiler.stacks.telling import TellsPhases, n_sequences, train, training_arguments

if TYPE_CHECKING:
    from qmem.profiler.stacks import Run


def run_hf(run: "Run") -> None:
    """Build the Trainer and let it train."""
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    if run.job.checkpointing and run.job.has_adapter and not run.facts.kbit_preparation:
        enable_checkpointing(run.model, run.job, run.facts)
    with TemporaryDirectory() as folder:
        train(run, _make_trainer(run, folder))


def _make_trainer(run: "Run", folder: str) -> Any:
    """The class is made here: its base is not imported before."""
    from transformers import Trainer, TrainingArguments  # noqa: PLC0415

    class MeasuredTrainer(TellsPhases, Trainer):
        """A Trainer that tells its phases."""

    arguments = TrainingArguments(**training_arguments(run, folder))
    return MeasuredTrainer(run, model=run.model, args=arguments, train_dataset=_make_dataset(run))


def _make_dataset(run: "Run") -> Any:
    import torch  # noqa: PLC0415

    job, vocab_size = run.job, run.architecture.vocab_size

    class RandomTokens(torch.utils.data.Dataset[dict[str, Any]]):
        """Sequences of full length, every position a label."""

        def __len__(self) -> int:
            return n_sequences(run)

        def __getitem__(self, index: int) -> dict[str, Any]:
            ids = random_ids(1, job.seq, vocab_size)[0]
            mask = {"attention_mask": torch.ones_like(ids)} if run.facts.attention_mask else {}
            return {"input_ids": ids, "labels": ids.clone(), **mask}

    return RandomTokens()
