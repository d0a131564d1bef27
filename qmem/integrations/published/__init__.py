"""The phantom against measurements that others published: ``python -m qmem.integrations.published``.

It builds the environment that they had, runs their jobs in it on the phantom, and writes
``reports/phantom-vs-published.md``.
"""
