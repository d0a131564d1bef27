"""One step of Adafactor on paper: the state it makes, and the temporaries of each parameter in turn.

A mirror of ``Adafactor.step`` with its locals: what a parameter leaves in them lives on while the next is updated.
Source: transformers 5.23.0 ``optimization.py``, with the settings of its Trainer (no first moment,
``scale_parameter`` and ``relative_step`` off).
"""

from qmem.errors import UnsupportedError
from qmem.estimator.model import layer_of
from qmem.estimator.paper import Paper, PaperTensor, empty, parameter
from qmem.estimator.reductions import sum_columns, sum_rows
from qmem.estimator.storage import Piece, optimizer_state
from qmem.ledger import Kind


class Adafactor:
    """The second moments of every parameter: of rows and columns, or of elements where there is one dimension.

    Attributes:
        moments: by the parameter's name.
        scales: the root mean square of every parameter, made anew at each step.
    """

    def __init__(self, paper: Paper) -> None:
        self.paper = paper
        self.moments: dict[str, list[PaperTensor]] = {}
        self.scales: dict[str, PaperTensor] = {}

    def step(self, parameters: list[PaperTensor]) -> None:
        """Update every parameter; 16-bit ones by way of fp32 copies of themselves and of their gradients."""
        paper = self.paper
        for p in parameters:
            paper.enter_layer(layer_of(p.name))
            _refuse_stacks(p)
            grad = self._fp32(p)  # a gradient has the shape and dtype of its parameter
            pieces = optimizer_state("adafactor", p.shape, p.dtype)
            if p.name not in self.moments:
                self.moments[p.name] = [self._keep(p, piece) for piece in pieces if piece.name != "RMS"]
            p_data_fp32 = self._fp32(p)
            self._set_scale(p, p_data_fp32)
            update = self._squared(grad)
            update = self._factored(update) if len(p.shape) > 1 else empty(paper, p.shape, "fp32")
            self._clip(update)
            negated = empty(paper, p.shape, "fp32")
            del negated

    def _fp32(self, x: PaperTensor) -> PaperTensor:
        return x if x.dtype == "fp32" else empty(self.paper, x.shape, "fp32")

    def _keep(self, p: PaperTensor, piece: Piece) -> PaperTensor:
        return parameter(self.paper, f"{p.name}.{piece.name}", piece.shape, piece.dtype, Kind.OPTIMIZER_STATE)

    def _set_scale(self, p: PaperTensor, p_data_fp32: PaperTensor) -> None:
        """``state["RMS"]``: the new scalar is there before the old one goes."""
        rms = self._root_mean_square(p_data_fp32)
        self.paper.relabel(rms, Kind.OPTIMIZER_STATE, f"{p.name}.RMS")
        self.scales[p.name] = rms

    def _root_mean_square(self, x: PaperTensor) -> PaperTensor:
        """``x.norm(2) / x.numel() ** 0.5``."""
        norm = empty(self.paper, (), "fp32")
        sum_rows(self.paper, 1, x.numel)
        rms = empty(self.paper, (), "fp32")
        del norm
        return rms

    def _squared(self, grad: PaperTensor) -> PaperTensor:
        """``grad ** 2 + eps``."""
        squares = empty(self.paper, grad.shape, "fp32")
        shifted = empty(self.paper, grad.shape, "fp32")
        del squares
        return shifted

    def _factored(self, squares: PaperTensor) -> PaperTensor:
        """Means of rows and of columns join the moments, whose outer product is the update."""
        paper, (rows, columns) = self.paper, squares.shape
        of_rows = empty(paper, (rows,), "fp32")
        sum_rows(paper, rows, columns)
        del of_rows
        of_columns = empty(paper, (columns,), "fp32")
        sum_columns(paper, rows, columns)
        del of_columns
        mean = empty(paper, (1,), "fp32")
        sum_rows(paper, 1, rows)
        r_factor = empty(paper, (rows,), "fp32")
        del mean
        c_factor = empty(paper, (columns,), "fp32")
        update = empty(paper, squares.shape, "fp32")
        del r_factor, c_factor
        return update

    def _clip(self, update: PaperTensor) -> None:
        """``update / max(rms(update) / threshold, 1)``, in place."""
        rms = self._root_mean_square(update)
        divisor = empty(self.paper, (), "fp32")
        del rms, divisor


def _refuse_stacks(p: PaperTensor) -> None:
    if len(p.shape) > 2:
        raise UnsupportedError(
            f"Adafactor of {p.name}, a parameter of {len(p.shape)} dimensions, is not modelled yet",
            hint="use another optimizer, such as --optimizer adamw_torch",
        )
