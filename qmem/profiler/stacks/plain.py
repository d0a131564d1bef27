"""A bare training function: forward, backward, step; called once a step, so that its locals go when it returns.

The ids are the labels too, an attention mask is passed only where the job says so (``attention_mask``), and gradients
are set to none.
"""

from typing import TYPE_CHECKING, Any

from qmem.errors import UnsupportedError
from qmem.profiler.build import torch_dtype
from qmem.profiler.names import optimizer_tensors
from qmem.profiler.prepare import enable_checkpointing

if TYPE_CHECKING:
    from qmem.profiler.stacks import Run

LEARNING_RATE = 1e-4


def run_plain(run: "Run") -> None:
    """Prepare what the loop itself decides, then run the steps."""
    model, job, facts, meter = run.model, run.job, run.facts, run.meter
    if job.checkpointing and not facts.kbit_preparation:
        enable_checkpointing(model, job, facts)
    optimizer = make_optimizer(job.optimizer, [p for p in model.parameters() if p.requires_grad])
    meter.sources.append(lambda: optimizer_tensors(model, optimizer))
    model.train()
    for step in range(1, run.steps + 1):
        run.begins(step)
        meter.enter("forward", step)
        _training_step(run, optimizer, step)
    meter.close()


def _training_step(run: "Run", optimizer: Any, step: int) -> None:
    import torch  # noqa: PLC0415

    job, meter = run.job, run.meter
    for micro_step in range(1, job.grad_accum + 1):
        meter.enter("forward", step, micro_step)
        input_ids = random_ids(job.batch, job.seq, run.architecture.vocab_size).to("cuda")
        mask = {"attention_mask": torch.ones_like(input_ids)} if run.facts.attention_mask else {}
        with _autocast(run):
            loss = run.model(input_ids=input_ids, labels=input_ids, use_cache=False, **mask).loss
        meter.enter("backward")
        if job.grad_accum > 1:
            loss = loss / job.grad_accum
        loss.backward()
    meter.enter("optimizer step", step)
    if run.facts.clip_gradients:
        _clip(run.model)
    optimizer.step()
    optimizer.zero_grad()


def _autocast(run: "Run") -> Any:
    import torch  # noqa: PLC0415

    name = run.job.compute_dtype
    dtype = torch_dtype("bf16" if name == "fp32" else name)
    return torch.autocast("cuda", dtype=dtype, enabled=run.facts.autocast)


def _clip(model: Any) -> None:
    import torch  # noqa: PLC0415

    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)


def random_ids(batch: int, seq: int, vocab_size: int) -> Any:
    """Token ids on the host."""
    import torch  # noqa: PLC0415

    return torch.randint(0, vocab_size, (batch, seq))


def make_optimizer(name: str, parameters: list[Any]) -> Any:
    """The optimizer of a job's name, with its class's own defaults."""
    import torch  # noqa: PLC0415

    if name == "sgd":
        return torch.optim.SGD(parameters, lr=LEARNING_RATE)
    if name.startswith("adamw_torch"):
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=name.endswith("fused") or None)
    if name == "adafactor":
        from transformers.optimization import Adafactor  # noqa: PLC0415

        return Adafactor(  # type: ignore[no-untyped-call]
            parameters, lr=LEARNING_RATE, scale_parameter=False, relative_step=False
        )
    return _bitsandbytes_class(name)(parameters, lr=LEARNING_RATE)


def _bitsandbytes_class(name: str) -> Any:
    """``paged_adamw_8bit`` → ``PagedAdamW8bit``."""
    import bitsandbytes  # noqa: PLC0415

    words = {"paged": "Paged", "adamw": "AdamW", "lion": "Lion"}
    found = getattr(bitsandbytes.optim, "".join(words.get(word, word) for word in name.split("_")), None)
    if found is None:
        raise UnsupportedError(f"bitsandbytes {bitsandbytes.__version__} has no optimizer {name}")
    return found
