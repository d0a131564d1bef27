"""The line that follows a profile: phase, step, memory now and at its peak."""

from collections.abc import Callable

from qmem.ledger import Moment
from qmem.profiler.protocol import AnyEvent, Closed, Entered, Noted, Started, Traced
from qmem.units import format_gib


class RunLine:
    """Turns the events of a run into one line of text; ``show`` puts it where it can be seen."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.peak = 0
        self.device = ""

    def __call__(self, event: AnyEvent) -> None:
        """Show what an event says."""
        if isinstance(event, Started):
            self.device = event.device
            self.show(f"{event.device}: libraries loaded")
        elif isinstance(event, Closed):
            self.peak = max(self.peak, event.allocated.peak)
        elif isinstance(event, Entered):
            self.peak = max(self.peak, event.peak)
            now, peak = format_gib(event.allocated), format_gib(self.peak)
            self.show(f"{self.device}: {Moment(*event.place, 0)} - {now} allocated, {peak} at the peak")
        elif isinstance(event, Noted):
            self.show(event.sentence)
        elif isinstance(event, Traced):
            self.show(f"{self.device}: adding up")
