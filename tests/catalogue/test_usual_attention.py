"""Which attention a family runs with where nobody asks: transformers' own classes are asked."""

import pytest

from qmem.catalogue import all_models
from qmem.catalogue.attention import EAGER_ONLY, with_usual_attention
from qmem.estimator.families import FAMILIES
from qmem.job import Job


@pytest.mark.libraries
def test_the_families_without_sdpa_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from qmem.profiler.build import class_of

    def runs_sdpa(family):
        config = transformers.AutoConfig.for_model(family)
        return class_of(family)._model_mapping[type(config)]._supports_sdpa

    assert tuple(sorted(family for family in FAMILIES if not runs_sdpa(family))) == EAGER_ONLY


def test_a_job_takes_eager_attention_where_its_family_has_no_sdpa():
    by_family = {model.config["model_type"]: model.id for model in all_models()}
    for family in ("llama", "gemma2", "gptj"):
        job, note = with_usual_attention(Job(model=by_family[family]))
        assert (job.attention, bool(note)) == (("eager", True) if family in EAGER_ONLY else ("sdpa", False))
