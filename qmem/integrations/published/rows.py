"""The published rows, with their source, and what was measured for each: data in and out, no running."""

from pathlib import Path
from typing import Any

import msgspec

from qmem.integrations.command import REPORTS
from qmem.ledger import Ledger

ROWS = Path(__file__).with_name("rows.json")
FIGURES = REPORTS / "phantom-vs-published.json"


class Source(msgspec.Struct, frozen=True):
    """Where the figures, the versions and the settings were read; all in one commit of one repository."""

    repository: str
    commit: str
    figures: str
    versions: str
    settings: str
    trainer: str

    def line(self, number: int) -> str:
        """The address of a line of the figures."""
        return f"{self.repository}/blob/{self.commit}/{self.figures}#L{number}"


class Published(msgspec.Struct, frozen=True):
    """The figures of a line: torch's peak and what was left allocated after training, and nvidia-smi's peak."""

    line: int
    framework_config: str
    peak_allocated_bytes: int
    steady_allocated_bytes: int
    nvidia_smi_mib: int


class Row(msgspec.Struct, frozen=True):
    """A published run and the fields of the job that replays it.

    Attributes:
        config: fields of the model's config that the published program had changed.
        tokens: of what its vocabulary is made up.
        substitution: what runs in the place of what was published, where not as in most rows.
        kept: bytes that the substitute keeps at the peak, and the published program does not.
        miss: what else is known of why the estimate is off.
    """

    id: str
    what: str
    published: Published
    job: dict[str, Any]
    config: dict[str, Any]
    tokens: str
    substitution: str | None = None
    kept: int = 0
    miss: str | None = None


class Rows(msgspec.Struct, frozen=True):
    """All rows and what they share: source, environment, card, changed fields of the model's config, and why."""

    about: str
    source: Source
    environment: str
    gpu: str
    config: dict[str, Any]
    substitution: str
    rows: tuple[Row, ...]


class Measured(msgspec.Struct, frozen=True):
    """What the phantom read for a row, by the qmem of a commit; ``asked`` is the digest of what it was asked."""

    id: str
    asked: str
    peak_allocated_bytes: int
    peak_moment: str
    steady_allocated_bytes: int
    device: str
    state: str
    ended: str
    versions: dict[str, str]
    date: str
    commit: str
    warnings: tuple[str, ...]


class Replay(msgspec.Struct, frozen=True):
    """A whole run of the rows."""

    measured: tuple[Measured, ...]


def read_rows() -> Rows:
    """The published rows of the package."""
    return msgspec.json.decode(ROWS.read_bytes(), type=Rows)


def read_replay(path: Path) -> Replay:
    """What an earlier run of the rows measured."""
    return msgspec.json.decode(path.read_bytes(), type=Replay)


def measured_of(row: Row, asked: str, ledger: Ledger) -> Measured:
    """The figures of a ledger that a published line has too: the peak, and what is left at the end of the last step."""
    readings = (one.n_bytes for one in ledger.readings if (one.waterline, one.measure) == ("allocated", "current"))
    left = [n_bytes for n_bytes in readings if isinstance(n_bytes, int)]
    return Measured(
        id=row.id,
        asked=asked,
        peak_allocated_bytes=ledger.peak.allocated_bytes,
        peak_moment=str(ledger.peak.moment),
        steady_allocated_bytes=left[-1],
        device=ledger.device,
        state=ledger.state,
        ended=ledger.ended,
        versions=ledger.versions,
        date=ledger.passport["date"],
        commit=ledger.passport.get("commit", ""),
        warnings=ledger.warnings,
    )
