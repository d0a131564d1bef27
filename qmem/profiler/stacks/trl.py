"""TRL's SFTTrainer with its fused head.

It is given a model that peft has wrapped, as its documentation allows, and does the rest itself: the cast of what is
trained, gradients for the input, the head, the mask of its collator.  The sequences are tokenized and of full length,
so neither its preparation of the dataset nor its tokenizer has anything to do.
"""

from typing import TYPE_CHECKING, Any

from qmem.profiler.prepare import cast_adapters
from qmem.profiler.stacks.plain import random_ids
from qmem.profiler.stacks.telling import TellsPhases, n_sequences, train, training_arguments

if TYPE_CHECKING:
    from qmem.profiler.stacks import Run


def run_trl(run: "Run") -> None:
    """Build the SFTTrainer and let it train."""
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        trainer = _make_trainer(run, folder)
        if run.job.has_adapter:
            cast_adapters(run.model, run.facts)
        train(run, trainer)


def _make_trainer(run: "Run", folder: str) -> Any:
    """The class is made here: its base is not imported before."""
    from trl.trainer.sft_config import SFTConfig  # noqa: PLC0415
    from trl.trainer.sft_trainer import SFTTrainer  # noqa: PLC0415

    class MeasuredTrainer(TellsPhases, SFTTrainer):
        """An SFTTrainer that tells its phases."""

    arguments = SFTConfig(
        **training_arguments(run, folder),
        max_length=run.job.seq,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return MeasuredTrainer(
        run, model=run.model, args=arguments, train_dataset=_make_dataset(run), processing_class=_padding_tokenizer()
    )


def _make_dataset(run: "Run") -> Any:
    """Sequences of full length, every position a label."""
    from datasets import Dataset  # noqa: PLC0415

    ids = random_ids(n_sequences(run), run.job.seq, run.architecture.vocab_size).numpy()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def _padding_tokenizer() -> Any:
    """A tokenizer that knows how to pad and nothing else: SFTTrainer wants one, and would look for it on the hub."""
    from tokenizers import Tokenizer  # noqa: PLC0415
    from tokenizers.models import WordLevel  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    padding = "<pad>"
    words: Any = Tokenizer(WordLevel({padding: 0}, padding))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=padding)  # type: ignore[no-untyped-call]
