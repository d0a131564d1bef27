"""For any ledger, the printed rows add up to the printed totals."""

from hypothesis import given
from hypothesis import strategies as st

from qmem.job import Job
from qmem.ledger import Interval, Item, Kind, Ledger, Moment, Parameters, Peak
from qmem.report.breakdown import breakdown
from qmem.report.rounding import share_interval_units, share_units, to_units
from qmem.report.terminal import render_estimate
from qmem.report.view import EstimateView

GIB = 1024**3
LOAD = Moment(0, 0, "load", 0)
PEAK = Moment(2, 1, "backward", 7)
REQUESTED = [kind for kind in Kind if kind.waterline == "requested"]
SIZES = st.one_of(st.integers(0, 2**12), st.integers(0, 2**31), st.integers(0, 2**39))

ITEMS = st.builds(
    Item,
    n_bytes=SIZES,
    kind=st.sampled_from(REQUESTED),
    owner=st.sampled_from(["model.norm.weight", "model.layers.3.mlp", "rule"]),
    born=st.just(LOAD),
    dies=st.sampled_from([None, PEAK]),
    count=st.integers(1, 80),
)


@st.composite
def ledgers(draw):
    """Ledgers whose peak holds what its items hold, and sometimes a little that no item explains."""
    items = tuple(draw(st.lists(ITEMS, max_size=30)))
    requested = sum(item.n_bytes for item in items if item.dies is None) + draw(st.just(0) | st.integers(0, 2**30))
    allocated = requested + draw(SIZES)
    reserved = draw(st.none() | SIZES.map(lambda cache: allocated + cache))
    paged = draw(st.just(0) | SIZES)
    context = Interval(draw(SIZES), 2**39)
    base = allocated if reserved is None else reserved
    device = draw(st.sampled_from([None, Interval(base + context.low, base + context.high + paged)]))
    peak = Peak(moment=PEAK, requested_bytes=requested, allocated_bytes=allocated, reserved_bytes=reserved,
                device_bytes=device)  # fmt: skip
    return Ledger(
        instrument="estimate", job=Job(model="m"), model="m", device="card", stack={}, versions={},
        parameters=Parameters(10, 5), peak=peak, paged_bytes=paged, items=items, readings=(),
    )  # fmt: skip


@given(ledgers())
def test_printed_rows_of_any_ledger_add_up(printed, read_rows, ledger):
    rows = read_rows(printed(render_estimate, EstimateView(ledger=ledger)))
    totals = {row.label.removeprefix("total "): row for row in rows if row.label.startswith("total ")}
    parts = [row for row in rows if row.indented or row.label == "unexplained"]
    outside = ("optimizer state, paged", "context", "context, resident pages", "cache and context",
               "cache and context, resident pages")  # fmt: skip
    above = {"requested": ("rounding", "cache", *outside), "allocated": ("cache", *outside), "reserved": outside,
             "device": ()}  # fmt: skip
    assert totals
    for waterline, total in totals.items():
        counted = [row for row in parts if row.label not in above[waterline]]
        assert (total.low, total.high) == (sum(r.low for r in counted), sum(r.high for r in counted)), waterline


@given(ledgers())
def test_no_printed_row_is_off_by_more_than_its_last_digit(ledger):
    for row in breakdown(ledger).rows:
        for units, n_bytes in ((row.units.low, row.n_bytes.low), (row.units.high, row.n_bytes.high)):
            assert abs(units * GIB - n_bytes * 1000) < 2 * GIB, row.label


@given(ledgers())
def test_exact_rows_add_up_to_the_peak_to_the_byte(ledger):
    rows = breakdown(ledger).rows
    at_or_below = {"requested": ["requested"], "allocated": ["requested", "allocated"]}
    for waterline, counted in at_or_below.items():
        n_bytes = sum(row.n_bytes.low for row in rows if row.waterline in counted)
        assert n_bytes == getattr(ledger.peak, f"{waterline}_bytes")


@given(st.lists(st.integers(-(10**12), 10**12)), st.sampled_from([GIB, 10**9, 7]), st.sampled_from([1, 100, 1000]))
def test_shared_units_add_up_and_each_is_off_by_less_than_one(parts, unit, scale):
    total = to_units(sum(parts), unit, scale)
    units = share_units(parts, unit, scale, total)
    assert sum(units) == total
    assert all(abs(amount * unit - part * scale) < unit for amount, part in zip(units, parts, strict=True))


INTERVALS = st.tuples(st.integers(0, 10**11), st.one_of(st.just(0), st.integers(0, 10**11))).map(
    lambda ends: Interval(ends[0], ends[0] + ends[1])
)


@given(st.lists(INTERVALS, min_size=1))
def test_shared_intervals_add_up_at_both_ends_and_certain_parts_stay_certain(parts):
    shared = share_interval_units(parts, GIB, 1000)
    assert sum(part.low for part in shared) == to_units(sum(part.low for part in parts), GIB, 1000)
    assert sum(part.high for part in shared) == to_units(sum(part.high for part in parts), GIB, 1000)
    for part, units in zip(parts, shared, strict=True):
        assert units.low <= units.high
        assert part.low != part.high or units.low == units.high


def test_rounding_takes_the_nearest_unit():
    assert [to_units(amount, 10, 1) for amount in (0, 4, 5, 14, 15)] == [0, 0, 1, 1, 2]
