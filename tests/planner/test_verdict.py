"""Fits, tight, does not fit."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmem.catalogue.gpus import all_gpus, find_gpu
from qmem.errors import UnsupportedError, UsageError
from qmem.job import Job
from qmem.ledger import Interval, Ledger, Moment, Parameters, Peak
from qmem.planner import verdict

MIB = 1024**2
GIB = 1024**3
CARD = find_gpu("rtx-4090")
CONTEXT = CARD.context_prior.n_bytes
ORDER = ("does not fit", "tight", "fits")


def a_ledger(allocated, reserved, paged=0):
    moment = Moment(2, 1, "backward", 5)
    peak = Peak(moment=moment, requested_bytes=allocated, allocated_bytes=allocated, reserved_bytes=reserved)
    return Ledger(
        instrument="estimate", job=Job(model="m"), model="m", device="card", stack={}, versions={},
        parameters=Parameters(10, 5), peak=peak, paged_bytes=paged, items=(), readings=(),
    )  # fmt: skip


def a_card(total_bytes):
    return msgspec.structs.replace(CARD, total_bytes=total_bytes)


def judged(capacity, *, allocated=10 * GIB, reserved=12 * GIB, paged=0, margin=0):
    return verdict(a_ledger(allocated, reserved, paged), a_card(capacity), margin)


def test_a_job_fits_where_even_the_largest_context_and_all_paged_state_do():
    need = 12 * GIB + CONTEXT.high + GIB
    assert judged(need, paged=GIB).outcome == "fits"
    assert judged(need - 1, paged=GIB).outcome == "tight"


def test_a_job_that_fits_only_with_pages_on_the_host_fits_by_paging():
    answer = judged(12 * GIB + CONTEXT.high, paged=GIB)
    assert (answer.outcome, answer.doubt) == ("tight", "by paging")
    assert answer.because == "fits by paging: 1.00 GiB of optimizer state may have to stay on the host"


def test_a_job_between_the_ends_of_the_context_is_tight_for_that_reason():
    answer = judged(12 * GIB + CONTEXT.low, paged=GIB)
    assert (answer.outcome, answer.doubt) == ("tight", "context unsure")
    assert answer.because == f"fits if the CUDA context stays within {CONTEXT.low / GIB:.2f} GiB"


def test_a_job_that_needs_its_allocators_cache_back_is_tight_and_says_how_much():
    answer = judged(11 * GIB + CONTEXT.low)
    assert (answer.outcome, answer.doubt) == ("tight", "cache given back")
    assert "gives back 1.00 GiB of its cache" in answer.because


def test_a_job_does_not_fit_where_its_allocated_bytes_do_not():
    assert judged(10 * GIB + CONTEXT.low).outcome == "tight"
    answer = judged(10 * GIB + CONTEXT.low - 1)
    assert (answer.outcome, answer.doubt) == ("does not fit", None)
    assert f"needs at least {(10 * GIB + CONTEXT.low) / GIB:.2f} GiB" in answer.because


def test_an_unknown_reserved_peak_counts_allocated_and_a_prior_for_the_cache():
    answer = judged(24 * GIB, reserved=None)
    parts = {part.name: part.n_bytes for part in answer.parts}
    assert parts["allocated"] == Interval(10 * GIB, 10 * GIB)
    assert parts["allocator's cache"] == Interval(0, 2 * GIB)
    assert answer.lower_bound
    assert not judged(24 * GIB).lower_bound


def test_with_an_unknown_reserved_peak_a_job_fits_only_where_the_cache_prior_does():
    need = 10 * GIB + CONTEXT.high
    assert judged(need + 2 * GIB, reserved=None).outcome == "fits"
    answer = judged(need + GIB, reserved=None)
    assert (answer.outcome, answer.doubt) == ("tight", "cache unknown")
    assert answer.because == "fits if the allocator's cache stays within 1.00 GiB"
    assert judged(10 * GIB + CONTEXT.low, reserved=None).doubt == "context unsure"
    assert judged(10 * GIB + CONTEXT.low - 1, reserved=None).outcome == "does not fit"


def test_a_safety_margin_is_a_part_of_its_own_and_is_absent_unless_asked_for():
    assert [part.name for part in judged(24 * GIB).parts] == ["reserved", "CUDA context"]
    with_margin = judged(24 * GIB, margin=GIB)
    assert [part.name for part in with_margin.parts] == ["reserved", "CUDA context", "safety margin"]
    assert with_margin.need.low - judged(24 * GIB).need.low == GIB


def test_a_negative_margin_is_refused():
    with pytest.raises(UsageError, match="safety margin is -1 B, but must be at least 0"):
        judged(24 * GIB, margin=-1)


def test_a_card_that_is_not_modelled_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="MI300X cannot be judged"):
        verdict(a_ledger(GIB, GIB), find_gpu("mi300x"))


def test_every_modelled_card_of_the_catalogue_can_be_judged():
    modelled = [gpu for gpu in all_gpus() if not gpu.not_modelled]
    outcomes = {gpu.id: verdict(a_ledger(GIB, 2 * GIB), gpu).outcome for gpu in modelled}
    assert len(outcomes) >= 30
    assert set(outcomes.values()) == {"fits"}


def test_a_capacity_taken_from_a_sibling_card_is_marked():
    assert not judged(24 * GIB).capacity_unsure
    assert verdict(a_ledger(1, 1), msgspec.structs.replace(CARD, unsure_fields=("total_bytes",))).capacity_unsure


BYTES = st.integers(0, 80 * GIB)
CACHE = st.none() | BYTES


def reserved(allocated, cache):
    return None if cache is None else allocated + cache


@given(allocated=BYTES, cache=CACHE, paged=BYTES, capacity=BYTES, more=BYTES)
def test_a_larger_card_is_never_judged_worse(allocated, cache, paged, capacity, more):
    sizes = {"allocated": allocated, "reserved": reserved(allocated, cache), "paged": paged}
    smaller, larger = judged(capacity, **sizes), judged(capacity + more, **sizes)
    assert ORDER.index(smaller.outcome) <= ORDER.index(larger.outcome)
    assert larger.headroom.low - smaller.headroom.low == more


@given(allocated=BYTES, cache=CACHE, paged=BYTES, margin=BYTES, more=BYTES)
def test_a_larger_job_or_margin_is_never_judged_better(allocated, cache, paged, margin, more):
    capacity = 40 * GIB
    sizes = {"allocated": allocated, "reserved": reserved(allocated, cache), "paged": paged, "margin": margin}
    before = ORDER.index(judged(capacity, **sizes).outcome)
    for grown in ({"paged": paged + more}, {"margin": margin + more},
                  {"allocated": allocated + more, "reserved": reserved(allocated + more, cache)}):  # fmt: skip
        assert ORDER.index(judged(capacity, **{**sizes, **grown}).outcome) <= before


@given(allocated=BYTES, cache=CACHE, paged=BYTES, capacity=BYTES)
def test_the_outcome_follows_from_the_headroom_and_the_floor(allocated, cache, paged, capacity):
    answer = judged(capacity, allocated=allocated, reserved=reserved(allocated, cache), paged=paged)
    assert (answer.outcome == "fits") == (answer.headroom.low >= 0)
    assert (answer.outcome == "does not fit") == (answer.floor_bytes > capacity)
    assert (answer.doubt is None) == (answer.outcome != "tight")
    assert answer.need == Interval(
        sum(part.n_bytes.low for part in answer.parts), sum(part.n_bytes.high for part in answer.parts)
    )
