"""What was asked, and what it ran on, told as words that can be held against another ledger's."""

import msgspec

from qmem.ledger.ledger import Ledger

RESOLVED = ("model", "quant")
"""Fields of a job that are compared by what they mean, not by how they are written."""

_GROUPS = ("instrument", "state", "ended", "model", "device", "parameters", "job", "stack", "versions", "passport")
WHEN = "date"
"""The entry of a passport that says when and not what: never a difference."""


class FieldDifference(msgspec.Struct, frozen=True):
    """Something that was asked, or ran, differently; absent (``None``) where one ledger does not say."""

    name: str
    a: str | None
    b: str | None


def differing_fields(a: Ledger, b: Ledger) -> tuple[FieldDifference, ...]:
    """The fields that differ, what decides most first."""
    said_a, said_b = _said(a), _said(b)
    names = [*said_a, *sorted(said_b.keys() - said_a.keys())]
    order = sorted(names, key=_field_order)
    if not (a.passport and b.passport):  # an estimate has none: that is no difference
        order = [name for name in order if not name.startswith("passport.")]
    pairs = [(name, said_a.get(name), said_b.get(name)) for name in order]
    return tuple(FieldDifference(*pair) for pair in pairs if pair[1] != pair[2])


def _field_order(name: str) -> tuple[int, str]:
    return _GROUPS.index(name.partition(".")[0]), name


def _said(ledger: Ledger) -> dict[str, str | None]:
    """What a ledger says of the question and of the machine, as words."""
    job = {field: getattr(ledger.job, field) for field in ledger.job.__struct_fields__ if field not in RESOLVED}
    facts = job.pop("facts")
    asked = {"job.quant": ledger.job.effective_quant, **{f"job.{name}": value for name, value in (job | facts).items()}}
    said = {
        "instrument": ledger.instrument,
        "state": ledger.state,
        "ended": ledger.ended,
        "model": ledger.model,
        "device": ledger.device or None,
        "parameters.total": f"{ledger.parameters.total:,}",
        "parameters.trainable": f"{ledger.parameters.trainable:,}",
        **({"job.watched": ledger.watched} if ledger.watched else asked),
        **{f"stack.{name}": value for name, value in ledger.stack.items()},
        **{f"versions.{name}": value for name, value in ledger.versions.items()},
        **{f"passport.{name}": value for name, value in ledger.passport.items() if name != WHEN},
    }
    return {name: None if value is None else _word(value) for name, value in said.items()}


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
