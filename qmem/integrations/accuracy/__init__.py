"""How far the estimate is off: a grid of jobs, run on the phantom GPU and estimated.

``python -m qmem.integrations.accuracy`` measures what is not there yet and writes ``reports/accuracy.md``.
"""
