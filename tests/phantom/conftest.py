"""Tests of the phantom are skipped, with the reason, where it cannot run."""

import pytest

from qmem.phantom import availability


@pytest.fixture(scope="session", autouse=True)
def needs_the_phantom():
    available = availability()
    if not available.can_run:
        pytest.skip(available.why)
