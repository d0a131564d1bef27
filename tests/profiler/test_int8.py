"""LLM.int8() on the phantom: whether an input has outliers is assumed, and said."""

import pytest

from qmem.estimator import estimate
from qmem.ledger import Kind
from qmem.ledger.comparison import compare

pytestmark = [pytest.mark.libraries, pytest.mark.usefixtures("phantom")]


def test_no_outlier_features_is_an_assumption_and_no_taint(profiled, a100):
    ledger = profiled(quant="int8")
    assert ledger.state == "assumed"
    assert ledger.warnings == ()
    assert [assumption for assumption in ledger.assumptions if "no outlier features" in assumption]
    assert ledger.by_kind(ledger.peak.moment).get(Kind.UNEXPLAINED, 0) == 0
    kinds = [kind for kind in compare(estimate(ledger.job, a100), ledger).peak.kinds if kind.change]
    assert [kind for kind in kinds if kind.kind.waterline == "requested"] == []
