"""The moments of a history that are looked at: its peak, its last failure, its end; and who holds what then.

It owns which they are and how what is held is counted; who a holder is stands in ``frames``.
"""

from collections.abc import Iterable
from typing import NamedTuple

from qmem.snapshot.answer import Fragmentation, Holder, Moment, Use, When
from qmem.snapshot.beginning import handle_before
from qmem.snapshot.fragmentation import fragmentation
from qmem.snapshot.frames import Holders
from qmem.snapshot.history import History, State
from qmem.snapshot.rerun import Rerun


class Look(NamedTuple):
    """A moment, what each holder holds, and what is reserved and free."""

    moment: Moment
    uses: dict[str, Use]
    fragmentation: Fragmentation


def looks(history: History, own: Rerun | None, holders: Holders) -> tuple[Look, ...]:
    """All moments that are known, in the order of time; without a replay only the end is."""
    last = len(history.entries) - 1
    if own is None:
        return (_look("end", last, history.end, _blocks_at_end(history.end), holders),)
    wanted: dict[int, list[When]] = {own.peak_allocated_event: ["peak"]}
    if history.failures:
        wanted.setdefault(history.failures[-1], []).append("out of memory")
    wanted.setdefault(last, []).append("end")
    return tuple(
        _look(when, event, _told(state, history.end) if when == "end" else state, _blocks(state, own), holders)
        for event, state in history.states(set(wanted))
        for when in wanted[event]
    )


def _told(state: State, end: State) -> State:
    """The end of a history, with the stacks that only the segments have (``context="state"``)."""
    for address, held in state.held.items():
        if held.frames is None:
            state.held[address] = held._replace(frames=end.held[address].frames)
    return state


def by_holder(seen: Iterable[Look]) -> tuple[Holder, ...]:
    """Who holds what at all moments, the largest of any moment first."""
    uses: dict[str, dict[When, Use]] = {}
    for look in seen:
        for where, use in look.uses.items():
            uses.setdefault(where, {})[look.moment.when] = use
    holders = [Holder(where, found) for where, found in uses.items()]
    return tuple(sorted(holders, key=_most, reverse=True))


def _most(holder: Holder) -> int:
    return max(use.n_bytes for use in holder.uses.values())


def _look(when: When, event: int, state: State, blocks: dict[int, int], holders: Holders) -> Look:
    names = {address: holders.name(held.frames, held.label) for address, held in state.held.items()}
    uses: dict[str, Use] = {}
    for address, held in state.held.items():
        use = uses.get(names[address], Use(0, 0))
        uses[names[address]] = Use(use.count + 1, use.n_bytes + held.n_bytes)
    moment = Moment(
        when=when,
        event=event,
        requested_bytes=sum(held.n_bytes for held in state.held.values()),
        allocated_bytes=sum(blocks.values()),
        reserved_bytes=state.reserved_bytes,
    )
    return Look(moment, uses, fragmentation(when, state, blocks, names.__getitem__))


def _blocks_at_end(end: State) -> dict[int, int]:
    return {
        address: held.n_bytes if held.block_bytes is None else held.block_bytes for address, held in end.held.items()
    }


def _blocks(state: State, own: Rerun) -> dict[int, int]:
    """The block of each address, as the replay handed them out."""
    return {
        address: own.block_bytes[handle_before(address) if held.event is None else held.event]
        for address, held in state.held.items()
    }
