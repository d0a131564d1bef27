"""What is kept of a run of any length: the steps that differ, and of each the micro-steps that do.

Steps 1 and 2 are kept, the fullest of the others, and the last two: a ledger of a million steps is as small as one of
four.
"""

from qmem.profiler.protocol import AnyEvent, Closed, Entered, Event

FIRST_STEPS = 2
FIRST_MICRO_STEPS = 2


class Log:
    """Takes the events of a run."""

    def __init__(self) -> None:
        self._others: list[Event] = []
        self._first: list[Closed] = []
        self._fullest: list[Closed] = []
        self._before: list[Closed] = []
        self._running: list[Closed] = []

    def take(self, event: Event) -> None:
        """Keep an event, as long as it may matter."""
        if not isinstance(event, Closed):
            if not isinstance(event, Entered):
                self._others.append(event)
            return
        if self._running and self._running[-1].place.step != event.place.step:
            self._end_step()
        self._running.append(event)
        if len(self._running) > 4 * FIRST_MICRO_STEPS:
            self._running = thinned(self._running)

    def _end_step(self) -> None:
        step, self._running = self._running, []
        if step[0].place.step <= FIRST_STEPS:
            self._first += step
            return
        self._before = step
        if not self._fullest or _peak(step) > _peak(self._fullest):
            self._fullest = step

    @property
    def events(self) -> list[AnyEvent]:
        """What was kept, in order; closings after everything else."""
        kept = {id(closed): closed for closed in (*self._first, *self._fullest, *self._before, *self._running)}
        return [*self._others, *kept.values()]  # type: ignore[list-item]  # an Event is one of the AnyEvent


def _peak(closings: list[Closed]) -> int:
    return max(closed.allocated.peak for closed in closings)


def thinned(closings: list[Closed]) -> list[Closed]:
    """The closings of one step: the first micro-steps, the fullest and the last."""
    fullest = max(closings, key=lambda closed: closed.allocated.peak).place.micro_step
    wanted = {*range(FIRST_MICRO_STEPS + 1), fullest, closings[-1].place.micro_step}
    return [closed for closed in closings if closed.place.micro_step in wanted]
