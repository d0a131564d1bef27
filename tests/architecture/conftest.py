"""Every family in turn."""

import pytest

from qmem.architecture import FAMILIES


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param
