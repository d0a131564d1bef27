"""Where the phases of a loop begin, and what is kept of a long run; torch on the host is enough for both."""

import pytest

from qmem.profiler.protocol import Closed, Counter, Entered, Place
from qmem.profiler.watching.log import Log
from qmem.profiler.watching.phases import Phases

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.libraries


class Places:
    """Takes the phases that a meter would be told."""

    def __init__(self):
        self.entered = []

    def enter(self, phase, step, micro_step):
        if (place := Place(step, micro_step, phase)) not in self.entered[-1:]:
            self.entered.append(place)


@pytest.fixture
def loop():
    """A model, its optimizer, the phases that watch them, and the places that these tell."""
    places = Places()
    phases = Phases(places, lambda _: None)
    model = torch.nn.Linear(4, 4)
    phases.follow(model)
    yield model, torch.optim.SGD(model.parameters()), phases, places
    phases.stop()


def forward(model):
    return model(torch.ones(2, 4)).sum()


def test_micro_steps_belong_to_a_step_that_ends_at_the_next_forward(loop):
    model, optimizer, _, places = loop
    for _ in range(2):
        forward(model).backward()
        forward(model).backward()
        optimizer.step()
    assert places.entered[:5] == [
        Place(1, 1, "forward"), Place(1, 1, "backward"), Place(1, 2, "forward"), Place(1, 2, "backward"),
        Place(1, 1, "optimizer step"),
    ]  # fmt: skip
    assert [place.step for place in places.entered[5:]] == [2] * 5


def test_two_forwards_before_a_backward_are_one_phase(loop):
    model, _, phases, places = loop
    (forward(model) + forward(model)).backward()
    assert places.entered == [Place(1, 1, "forward"), Place(1, 1, "backward")]
    assert not phases.unplaced


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_an_evaluation_between_steps_is_a_phase_of_its_own(loop, how):
    model, optimizer, _, places = loop
    forward(model).backward()
    optimizer.step()
    if how == "eval":
        model.eval()
    with torch.set_grad_enabled(how == "eval"):
        forward(model)
    model.train()
    forward(model)
    assert places.entered[-2:] == [Place(1, 1, "evaluation"), Place(2, 1, "forward")]


def test_what_cannot_be_placed_is_said_to_be_unknown(loop):
    model, optimizer, phases, places = loop
    optimizer.step()
    (model.weight.sum()).backward()
    assert places.entered == []
    (loss,) = torch.autograd.grad(forward(model), [model.weight])
    model.weight.grad = loss
    optimizer.step()
    assert places.entered == [Place(1, 1, "forward"), Place(1, 1, "optimizer step")]
    unknown = "its phase is unknown, and what it held is counted in the"
    no_forward = "no forward of the watched model had been seen"
    assert list(phases.unplaced) == [
        f"an optimizer's step began where {no_forward}: {unknown} load",
        f"a backward began where {no_forward}: {unknown} load",
        f"an optimizer's step began where no backward had been seen: {unknown} forward",
    ]


def test_hooks_are_gone_when_it_stops(loop):
    model, optimizer, phases, places = loop
    phases.stop()
    forward(model).backward()
    optimizer.step()
    assert places.entered == []


def closed(step, peak, micro_step=1, phase="forward"):
    counter = Counter(peak, peak)
    return Closed(
        place=Place(step, micro_step, phase), tick=step, requested=counter, allocated=counter, reserved=counter,
        active=counter, device={}, totals={}, holdings=(), unnamed=(),
    )  # fmt: skip


def test_a_long_run_keeps_its_first_steps_its_fullest_and_its_last():
    log = Log()
    for step in range(1, 10_001):
        log.take(Entered(place=Place(step, 1, "forward"), allocated=0, peak=0))
        log.take(closed(step, 1000 if step == 4321 else step % 10))
    assert [event.place.step for event in log.events] == [1, 2, 4321, 9999, 10_000]


def test_a_step_of_many_micro_steps_keeps_the_first_the_fullest_and_the_last():
    log = Log()
    for micro_step in range(1, 101):
        log.take(closed(1, 1000 if micro_step == 57 else 1, micro_step))
    kept = {event.place.micro_step for event in log.events}
    assert {1, 2, 57, 100} <= kept
    assert len(kept) <= 10
