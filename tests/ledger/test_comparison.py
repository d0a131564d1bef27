"""What stands beside what, when two ledgers are compared."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import job, ledgers, make_ledger

from qmem.ledger import Interval, Item, Kind, Moment, Peak, Reading, compare
from qmem.ledger.differences import change

LOAD = Moment(0, 0, "load", 5)
BACKWARD = Moment(2, 1, "backward", 20)
LAYERS = [f"model.layers.{layer}.up_proj.weight" for layer in range(40)]


def weight(owner: str, n_bytes: int, count: int = 1, **fields) -> Item:
    return Item(n_bytes=n_bytes, kind=Kind.BASE_WEIGHT, owner=owner, born=LOAD, count=count, **fields)


def current(n_bytes, waterline="requested", moment=LOAD, measure="current") -> Reading:
    return Reading(moment=moment, waterline=waterline, measure=measure, n_bytes=n_bytes, counter="c")


def swapped(value):
    """A comparison in builtin types with its sides exchanged."""
    if isinstance(value, list | tuple):
        return tuple(swapped(each) for each in value)
    if not isinstance(value, dict):
        return value
    names = {"a": "b", "b": "a", "only_a": "only_b", "only_b": "only_a", "paged_a": "paged_b", "paged_b": "paged_a"}
    return {names.get(name, name): swapped(each) for name, each in value.items()}


@given(ledgers())
def test_a_ledger_compared_with_itself_has_no_difference(ledger):
    compared = compare(ledger, ledger)
    assert compared.is_equal
    assert (compared.fields, compared.owners, compared.peak.holdings) == ((), (), ())
    assert all(number.a == number.b for number in compared.numbers)
    assert compared.peak.scored


@given(ledgers(), ledgers())
def test_exchanging_the_sides_exchanges_every_number(a, b):
    there, back = compare(a, b), compare(b, a)
    assert msgspec.to_builtins(back) == swapped(msgspec.to_builtins(there))
    assert there.is_equal == back.is_equal


@given(ledgers(), ledgers())
def test_differences_are_negated_when_the_sides_are_exchanged(a, b):
    for one, other in zip(compare(a, b).numbers, compare(b, a).numbers, strict=True):
        if one.change is None or isinstance(one.change, Interval):
            assert type(one.change) is type(other.change)
        else:
            assert one.change == -other.change


@given(ledgers(), st.integers(1, 2**40))
def test_one_more_byte_anywhere_in_the_paged_total_is_a_difference(ledger, more):
    grown = msgspec.structs.replace(ledger, paged_bytes=ledger.paged_bytes + more)
    compared = compare(ledger, grown)
    assert not compared.is_equal
    assert (compared.paged_a, compared.paged_b) == (ledger.paged_bytes, ledger.paged_bytes + more)


@given(ledgers())
def test_kinds_at_a_closing_add_up_to_what_is_requested_there(ledger):
    for phase in compare(ledger, ledger).phases:
        requested = [row.a for row in phase.readings if (row.waterline, row.measure) == ("requested", "current")]
        if phase.kinds and requested and isinstance(requested[0], int):
            assert sum(row.a for row in phase.kinds if row.kind.waterline == "requested") == requested[0]


def test_a_series_meets_the_names_it_stands_for():
    series = make_ledger([weight("model.layers.{0..39}.up_proj.weight", 4_000, 40)], [current(4_000)])
    names = make_ledger([weight(name, 100) for name in LAYERS], [current(4_000)])
    assert compare(series, names).is_equal


def test_a_series_without_numbers_meets_names_by_their_sum():
    some = make_ledger([weight("model.layers.*.up_proj.weight", 300, 3)], [current(300)])
    assert compare(some, make_ledger([weight(name, 100) for name in LAYERS[:3]], [current(300)])).is_equal
    (row,) = compare(some, make_ledger([weight(name, 100) for name in LAYERS[:2]], [current(200)])).owners
    assert (row.owner, row.a, row.b) == ("model.layers.*.up_proj.weight", 300, 200)


def test_the_layers_that_differ_are_named_even_where_the_sums_agree():
    names = make_ledger([weight(name, 100) for name in LAYERS], [current(4_000)])
    uneven = {3: 90, 4: 110, 5: 110, 9: 80}
    other = make_ledger([weight(name, uneven.get(n, 100)) for n, name in enumerate(LAYERS)], [current(4_000)])
    rows = {row.owner: (row.a, row.b, row.change) for row in compare(names, other).owners}
    assert rows == {
        "model.layers.3.up_proj.weight": (100, 90, -10),
        "model.layers.{4..5}.up_proj.weight": (200, 220, 20),
        "model.layers.9.up_proj.weight": (100, 80, -20),
    }


def test_an_owner_is_shown_at_the_closing_where_it_differs_most():
    prepare = Moment(0, 0, "prepare", 8)
    readings = [current(100), current(100, moment=prepare)]
    kept = make_ledger([weight("lm_head.weight", 100)], readings)
    freed = make_ledger([weight("lm_head.weight", 100, dies=Moment(0, 0, "prepare", 6))], readings)
    (row,) = compare(kept, freed).owners
    assert (row.a, row.b, row.when) == (100, 0, "prepare")


def test_paged_state_is_compared_by_owner_too():
    state = {"kind": Kind.OPTIMIZER_STATE, "born": LOAD, "space": "managed"}
    a = make_ledger([Item(n_bytes=80, owner="x.state1", **state)], [current(0)], paged_bytes=80)
    compared = compare(a, make_ledger([], [current(0)]))
    assert [(row.owner, row.space, row.change) for row in compared.owners] == [("x.state1", "managed", -80)]


def test_what_items_do_not_explain_is_a_kind_of_its_own():
    a = make_ledger([weight("w", 70)], [current(100)])
    b = make_ledger([weight("w", 70)], [current(130)])
    (phase,) = compare(a, b).phases
    assert {row.kind: (row.a, row.b) for row in phase.kinds} == {
        Kind.BASE_WEIGHT: (70, 70), Kind.UNEXPLAINED: (30, 60),
    }  # fmt: skip


def test_rounding_and_cache_are_the_steps_between_the_counters_and_absent_where_one_is_missing():
    a = make_ledger([], [current(100), current(612, "allocated"), current(1_000, "reserved")])
    b = make_ledger([], [current(100), current(612, "allocated")])
    kinds = {row.kind: (row.a, row.b, row.change) for row in compare(a, b).phases[0].kinds}
    assert kinds[Kind.ROUNDING] == (512, 512, 0)
    assert kinds[Kind.CACHE] == (388, None, None)


def test_a_kind_without_items_is_unknown_where_what_is_unexplained_could_be_it():
    a = make_ledger([weight("w", 70)], [current(70)])
    kinds = {
        n_bytes: {row.kind: row.b for row in compare(a, make_ledger([], [current(n_bytes)])).phases[0].kinds}
        for n_bytes in (70, 69, 0)
    }
    assert [kinds[n_bytes][Kind.BASE_WEIGHT] for n_bytes in (70, 69, 0)] == [None, 0, 0]
    assert [kinds[n_bytes][Kind.UNEXPLAINED] for n_bytes in (70, 69, 0)] == [70, 69, 0]


def test_when_a_run_was_made_is_no_difference_and_on_which_driver_is():
    a = make_ledger(passport={"date": "2026-01-01", "driver": "580"}, counters={"retries (count)": 0})
    later = make_ledger(passport={"date": "2026-01-02", "driver": "580"}, counters={"retries (count)": 0})
    other = make_ledger(passport={"date": "2026-01-02", "driver": "590"}, counters={"retries (count)": 2})
    assert compare(a, later).is_equal
    compared = compare(a, other)
    assert [(field.name, field.a, field.b) for field in compared.fields] == [("passport.driver", "580", "590")]
    assert [(row.name, row.change) for row in compared.counters] == [("retries (count)", 2)]
    assert compare(a, make_ledger(counters={"retries (count)": 0})).is_equal


def test_a_tainted_run_and_one_that_ended_early_are_named_first():
    compared = compare(make_ledger(), make_ledger(state="tainted", ended="out of memory"))
    assert [(field.name, field.b) for field in compared.fields] == [("state", "tainted"), ("ended", "out of memory")]


def test_ticks_and_the_micro_step_before_training_are_an_instruments_own():
    a = make_ledger([], [current(100)])
    late = Moment(0, 1, "load", 9_999)
    compared = compare(a, make_ledger([], [current(100, moment=late)]))
    assert compared.is_equal
    assert len(compared.phases) == 1


def test_phases_that_one_of_them_lacks_are_named():
    a = make_ledger([], [current(1), current(1, moment=BACKWARD)])
    b = make_ledger([], [current(1), current(1, moment=Moment(3, 1, "evaluation", 30))])
    compared = compare(a, b)
    assert (compared.only_a, compared.only_b) == (("backward of step 2",), ("evaluation of step 3",))
    assert not compared.is_equal


@pytest.mark.parametrize(
    ("a", "b", "scored"),
    [
        ((2, "backward"), (2, "backward"), True),
        ((2, "backward"), (7, "backward"), True),
        ((1, "backward"), (2, "backward"), False),
        ((2, "loss"), (2, "backward"), False),
    ],
)
def test_kinds_at_the_peak_are_scored_only_where_both_are_fullest_in_the_same_phase(a, b, scored):
    first, second = (
        make_ledger(peak=Peak(moment=Moment(step, 1, phase, 5), requested_bytes=1, allocated_bytes=1))
        for step, phase in (a, b)
    )
    assert compare(first, second).peak.scored is scored


def test_what_was_asked_differently_comes_first_and_by_what_it_means():
    a = make_ledger(job=job(quant="nf4"), stack={"autocast": "yes"}, versions={"torch": "2.14.1"})
    b = make_ledger(
        job=job(rank=16, facts={"cast_norms": "no"}), device="NVIDIA A100", stack={"autocast": "no"}, versions={}
    )
    assert [(field.name, field.a, field.b) for field in compare(a, b).fields] == [
        ("device", None, "NVIDIA A100"),
        ("job.cast_norms", None, "no"),
        ("job.rank", "8", "16"),
        ("stack.autocast", "yes", "no"),
        ("versions.torch", "2.14.1", None),
    ]


def test_an_interval_makes_the_difference_one():
    assert change(10, Interval(20, 30)) == Interval(10, 20)
    assert change(Interval(20, 30), 10) == Interval(-20, -10)
    assert change(None, 10) is None
