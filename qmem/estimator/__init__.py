"""The estimate: the training step run on tensors without data."""

from qmem.estimator.estimation import estimate, trace_of

__all__ = ["estimate", "trace_of"]
