"""Reads the data files that lie beside this module."""

import os


def read_packaged(name: str) -> bytes:
    """A data file of the catalogue, such as ``models.json``.

    Not by ``pathlib``, whose import alone costs as much as all the reading.
    """
    with open(os.path.join(os.path.dirname(__file__), name), "rb") as file:  # noqa: PTH118, PTH120, PTH123
        return file.read()
