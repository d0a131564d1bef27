"""The torch versions that the one phantom library serves: ``python -m qmem.integrations.torch_versions``.

In an environment of each it runs the tests of the readback guard and two small trainings, and writes
``reports/torch-versions.md``.
"""
