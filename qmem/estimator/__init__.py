"""The estimate: the training step run on tensors without data."""

from qmem.estimator.estimation import estimate, peak_requested, trace_of

__all__ = ["estimate", "peak_requested", "trace_of"]
