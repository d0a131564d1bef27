"""Random ledgers that hold together: readings follow from items, moments are in order."""

from hypothesis import strategies as st

from qmem.job import Job
from qmem.ledger import Interval, Item, Kind, Ledger, Moment, Parameters, Peak, Reading

PHASES = (
    (0, "load"), (0, "prepare"), (1, "forward"), (1, "loss"), (1, "backward"), (1, "optimizer step"),
    (2, "forward"), (2, "backward"),
)  # fmt: skip
REQUESTED = [kind for kind in Kind if kind.waterline == "requested" and kind is not Kind.UNEXPLAINED]
OWNERS = (
    "model.embed_tokens.weight", "model.layers.0.up.weight", "model.layers.1.up.weight",
    "model.layers.{0..3}.up.weight", "model.layers.{0,2..3}.down.weight", "model.layers.*.down.weight", "loss",
)  # fmt: skip
SIZES = st.one_of(st.just(0), st.integers(0, 2**12), st.integers(0, 2**35))


def job(**fields) -> Job:
    return Job(model="m", **fields)


def make_ledger(items=(), readings=(), **changes) -> Ledger:
    fields = {
        "instrument": "estimate", "job": job(), "model": "m", "device": "", "stack": {}, "versions": {},
        "parameters": Parameters(10, 5), "paged_bytes": 0, "items": tuple(items), "readings": tuple(readings),
        "peak": Peak(moment=Moment(2, 1, "backward", 20), requested_bytes=0, allocated_bytes=0),
    }  # fmt: skip
    return Ledger(**{**fields, **changes})


@st.composite
def ledgers(draw) -> Ledger:
    first = draw(st.integers(0, 1_000))
    places = draw(
        st.lists(st.sampled_from(PHASES), unique=True, min_size=1).map(lambda found: sorted(found, key=PHASES.index))
    )
    closings = [Moment(step, 1 if step else draw(st.integers(0, 1)), phase, first + 10 * n)
                for n, (step, phase) in enumerate(places)]  # fmt: skip
    items = draw(st.lists(st.builds(
        Item,
        n_bytes=SIZES.map(lambda n: n * 12), count=st.sampled_from([1, 3, 4, 12]),
        kind=st.sampled_from(REQUESTED), owner=st.sampled_from(OWNERS), born=st.sampled_from(closings),
        dies=st.none() | st.sampled_from(closings), space=st.sampled_from(["gpu", "gpu", "managed", "pinned"]),
    ), max_size=12))  # fmt: skip
    amount = st.one_of(SIZES, st.tuples(SIZES, SIZES).map(lambda ends: Interval(min(ends), max(ends))))
    readings = draw(st.lists(st.builds(
        Reading,
        moment=st.sampled_from(closings), waterline=st.sampled_from(["requested", "allocated", "reserved", "device"]),
        measure=st.sampled_from(["current", "peak"]), n_bytes=amount, counter=st.just("walk"),
    ), max_size=20))  # fmt: skip
    peak = Peak(moment=draw(st.sampled_from(closings)), requested_bytes=draw(SIZES), allocated_bytes=draw(SIZES),
                reserved_bytes=draw(st.none() | SIZES))  # fmt: skip
    return make_ledger(
        items, readings, peak=peak, paged_bytes=draw(SIZES), device=draw(st.sampled_from(["", "card"])),
        instrument=draw(st.sampled_from(["estimate", "phantom profile", "profile"])),
        job=job(rank=draw(st.integers(1, 3))), versions=draw(st.sampled_from([{}, {"torch": "2.4.1"}])),
    )  # fmt: skip
