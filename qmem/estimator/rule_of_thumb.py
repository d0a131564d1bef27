"""The hand calculation that articles on QLoRA print, kept beside the estimate and never mixed with it.

It owns the arithmetic of that calculation, in decimal gigabytes as its readers know it, and knows nothing of what
libraries store or when.  Source: the calculation that QLoRA tutorials repeat, in the variant that works a model of
14 billion parameters (hidden 5120, 40 layers) at batch 1 and sequence 2048; it has no first author that could be
cited, and none of its constants is measured here.
"""

import msgspec

from qmem.job.job import Dtype, Quant
from qmem.ledger import Interval, Kind
from qmem.units import GB

REFERENCE_HIDDEN = 5120
REFERENCE_LAYERS = 40
REFERENCE_TOKENS = 2048
REFERENCE_ACTIVATIONS = Interval(5 * GB, 7 * GB)
BUFFERS_AND_OVERHEAD = Interval(1_500_000_000, 2 * GB)

BITS_DOUBLE_QUANT = 4.05
BITS_SINGLE_QUANT = 4.5
"""4 bits and a 32-bit absmax for 64 weights; some texts print 4.25 here, which would be blocks of 128."""
BITS_INT8 = 8.0
BITS_UNQUANTIZED: dict[Dtype, float] = {"bf16": 16, "fp16": 16, "fp32": 32}

ADAPTER_BYTES = 2
GRADIENT_BYTES = 2
ADAMW_BYTES = 8


class Line(msgspec.Struct, frozen=True):
    """One line of the calculation.

    Attributes:
        kind: the row or heading of the ledger's tree that it stands beside.
        n_bytes: what it says, both ends equal where the source prints one number.
        counted: whether the source adds it to its total.
        because: the formula with its numbers.
    """

    kind: Kind
    n_bytes: Interval
    counted: bool
    because: str


class RuleOfThumb(msgspec.Struct, frozen=True):
    """The whole calculation; ``assumptions`` are sentences for the reader."""

    lines: tuple[Line, ...]
    assumptions: tuple[str, ...]

    @property
    def total(self) -> Interval:
        """Weights + activations + buffers and overhead, in bytes: what the source adds up."""
        counted = [line.n_bytes for line in self.lines if line.counted]
        return Interval(sum(part.low for part in counted), sum(part.high for part in counted))

    def line(self, kind: Kind) -> Line | None:
        """The line that stands beside a row or heading, if the calculation has one."""
        return next((line for line in self.lines if line.kind is kind), None)


def rule_of_thumb(
    n_parameters: int,
    n_trainable: int | None = None,
    *,
    batch: int = 1,
    seq: int = REFERENCE_TOKENS,
    hidden: int | None = None,
    layers: int | None = None,
    quant: Quant = "nf4",
    double_quant: bool = True,
    paged: bool = True,
    dtype: Dtype = "bf16",
) -> RuleOfThumb:
    """The hand calculation for a model of ``n_parameters``, of which an adapter trains ``n_trainable``.

    What is not given is the reference's: hidden 5120 and 40 layers.  Without ``n_trainable`` there are no adapter
    lines.  ``dtype`` is the dtype of a base that is not quantized.
    """
    lines = (
        _weights(n_parameters, quant, dtype, double_quant=double_quant),
        *(() if n_trainable is None else _adapter_lines(n_trainable, paged=paged)),
        _activations(batch * seq, hidden or REFERENCE_HIDDEN, layers or REFERENCE_LAYERS),
        Line(Kind.BUFFERS, BUFFERS_AND_OVERHEAD, counted=True, because="1.5 to 2 GB for buffers and overhead together"),
    )
    return RuleOfThumb(lines, tuple(_assumptions(n_parameters, n_trainable, hidden, layers)))


def _weights(n_parameters: int, quant: Quant, dtype: Dtype, *, double_quant: bool) -> Line:
    bits, why = _bits_per_parameter(quant, dtype, double_quant=double_quant)
    because = f"{n_parameters:,} parameters x {bits:g} bit / 8 ({why})"
    return Line(Kind.WEIGHTS, _exactly(round(n_parameters * bits / 8)), counted=True, because=because)


def _bits_per_parameter(quant: Quant, dtype: Dtype, *, double_quant: bool) -> tuple[float, str]:
    """Bits that the source counts for every parameter, and what they stand for."""
    if quant == "none":
        return BITS_UNQUANTIZED[dtype], dtype
    if quant == "int8":
        return BITS_INT8, "int8"
    if double_quant:
        return BITS_DOUBLE_QUANT, f"{quant} with double quantization"
    return BITS_SINGLE_QUANT, f"{quant} without double quantization; some texts print 4.25"


def _adapter_lines(n_trainable: int, *, paged: bool) -> tuple[Line, ...]:
    """LoRA's lines, which the source shows and leaves out of its total."""
    state_bytes = 0 if paged else ADAMW_BYTES
    where = "paged: 0 on the GPU" if paged else "AdamW, two fp32 moments"
    return (
        _per_parameter(Kind.ADAPTER, n_trainable, ADAPTER_BYTES, "16 bit"),
        _per_parameter(Kind.GRADIENT, n_trainable, GRADIENT_BYTES, "16 bit"),
        _per_parameter(Kind.OPTIMIZER_STATE, n_trainable, state_bytes, where),
    )


def _per_parameter(kind: Kind, n_trainable: int, n_bytes: int, why: str) -> Line:
    because = f"{n_trainable:,} trained parameters x {n_bytes} B ({why})"
    return Line(kind, _exactly(n_trainable * n_bytes), counted=False, because=because)


def _activations(tokens: int, hidden: int, layers: int) -> Line:
    """5 to 7 GB at 1 x 2048 tokens, hidden 5120, 40 layers, scaled with the product of the four."""
    reference = REFERENCE_TOKENS * REFERENCE_HIDDEN * REFERENCE_LAYERS
    scale = tokens * hidden * layers
    low, high = (end * scale // reference for end in (REFERENCE_ACTIVATIONS.low, REFERENCE_ACTIVATIONS.high))
    because = f"5 to 7 GB x ({tokens:,} tokens x {hidden} x {layers} layers) / (2,048 x 5120 x 40)"
    return Line(Kind.ACTIVATIONS, Interval(low, high), counted=True, because=because)


def _assumptions(n_parameters: int, n_trainable: int | None, hidden: int | None, layers: int | None) -> list[str]:
    sentences = ["The common hand calculation of QLoRA articles, in GB (10^9 B); a habit, not a measurement."]
    if hidden is None or layers is None:
        missing = " and ".join(
            [f"hidden {REFERENCE_HIDDEN}"] * (hidden is None) + [f"{REFERENCE_LAYERS} layers"] * (layers is None)
        )
        sentences.append(f"Not given, so taken from the reference job (1 x 2048 tokens, 14e9 parameters): {missing}.")
    if n_trainable is not None:
        sentences.append("The LoRA and AdamW lines are shown and left out of the total, as the source adds it.")
    if n_trainable == n_parameters:
        sentences.append("It is made for adapters: for full fine-tuning its total misses gradients and optimizer.")
    return sentences


def _exactly(n_bytes: int) -> Interval:
    return Interval(n_bytes, n_bytes)
