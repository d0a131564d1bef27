"""The ledger of a watched run: as that of a profile, for a training of which no job is known."""

from collections.abc import Iterator
from typing import NamedTuple

from qmem.ledger import Ledger, Parameters
from qmem.profiler import protocol
from qmem.profiler.account import (
    Books,
    counters_of,
    error_of_subtraction,
    instrument_of,
    paged_bytes_of,
    peak_of,
    readings_of,
    state_of,
)
from qmem.profiler.matching import Match, matches_of, transients_of
from qmem.profiler.protocol import Request
from qmem.profiler.refusals import LIBRARIES
from qmem.profiler.sentences import RETRIED, noted, shortage_in_words, unlike
from qmem.profiler.spans import Span, fullest, only, residents_of, spans_of
from qmem.profiler.supervisor import Told
from qmem.profiler.watching.kept import items_of_kept, kept_blocks

TITLE = "a training run, watched"
VERSIONED = (*LIBRARIES, "trl")


class Watched(NamedTuple):
    """What was watched.

    Attributes:
        request: with the model's name and the card.
        run: in words.
        notes: what to say of it.
        detail: whether a step was to be traced.
        retries_before: how often torch had given segments back before.
    """

    request: Request
    run: str
    notes: tuple[str, ...]
    detail: bool
    retries_before: int


def watched_ledger(watched: Watched, told: Told) -> Ledger:
    """The ledger of a run, however it ended; at least one phase was closed."""
    spans = spans_of(told)
    kept = kept_blocks(spans, told)
    residents = [*residents_of(spans, told), *items_of_kept(kept, told)]
    born = {one.block: one.since.closed.place.step for one in kept}
    matches = matches_of(told, spans, residents, born)
    books = Books([*residents, *(item for match in matches for item in transients_of(match))])
    books.balance(spans, matches)
    started, described = only(told, protocol.Started), only(told, protocol.Described)
    passport = started.passport if started else {}
    counters = counters_of(watched.request, told, spans)
    return Ledger(
        instrument=instrument_of(watched.request),
        job=watched.request.job,
        model=watched.request.job.model,
        device=started.device if started else "",
        stack={"title": TITLE},
        versions={library: passport[library] for library in VERSIONED if library in passport},
        parameters=Parameters(described.total, described.trainable) if described else Parameters(0, 0),
        peak=peak_of(spans, matches, watched.request),
        paged_bytes=paged_bytes_of(spans),
        items=tuple(books.items),
        readings=tuple(readings_of(spans, matches)),
        assumptions=(*_assumptions(watched, told, spans), *error_of_subtraction(counters)),
        warnings=(*_warnings(watched, told, spans, matches), *watched.notes),
        passport={name: text for name, text in passport.items() if name not in VERSIONED},
        state=state_of(told),
        ended=told.ended,
        counters=counters,
        watched=watched.run,
    )


def _assumptions(watched: Watched, told: Told, spans: list[Span]) -> Iterator[str]:
    yield "a program was watched: of the job only the model is known, and its other fields say nothing"
    if watched.request.phantom:
        yield "simulated: sizes of context and modules, resident pages and times are not those of a card"
    guarded = only(told, protocol.Guarded)
    yield from guarded.assumptions if guarded else ()
    yield from noted(told, is_warning=False)
    if not all(span.closed.looked for span in spans):
        yield "only counters were read in the steps: what lived and died inside one has no name (detail=True finds it)"
    elif only(told, protocol.Traced):
        yield "owners of transient memory are those of one more step, traced after the clean ones and found like them"


def _warnings(watched: Watched, told: Told, spans: list[Span], matches: list[Match]) -> Iterator[str]:
    if told.ended != "complete":
        yield f"the run ended early in the {spans[-1].closing}, {told.ended}: {told.message}"
    elif watched.detail and not only(told, protocol.Traced):
        yield "the run ended before a step could be traced: what lived and died inside a step has no owner"
    if spans[-1].closed.shortage is not None:
        yield shortage_in_words(spans[-1], advice="expandable_segments:True in PYTORCH_CUDA_ALLOC_CONF may help")
    guarded = only(told, protocol.Guarded)
    yield from guarded.sentences if guarded else ()
    yield from noted(told, is_warning=True)
    if spans[-1].closed.totals["alloc_retries"] > watched.retries_before:
        yield RETRIED
    yield from unlike(fullest(spans), matches)
