"""Tries the phantom under one version of torch: the guard's tests, and small trainings by ``qmem profile``."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from qmem.errors import UnavailableError
from qmem.integrations.environments import CHECKOUT, environments, python_of
from qmem.ledger import Ledger, from_json

GUARD_TESTS = Path("tests") / "phantom" / "test_guard.py"
TAINTS = "test_a_read_of_values_that_were_never_computed_taints_and_names_its_line"
"""The test whose cases are reads that a real device would answer otherwise."""

TRAININGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("QLoRA under the Trainer", ("--method", "qlora", "--stack", "hf")),
    ("LoRA in a bare loop", ("--method", "lora", "--stack", "plain", "--optimizer", "adamw_torch")),
)
COMMON = ("meta-llama/Llama-3.2-1B", "--rank", "8", "--seq", "512", "--phantom", "a100-80", "--steps", "2")


class Case(msgspec.Struct, frozen=True):
    """One test of the guard: its name, the case it looks at, and whether it passed."""

    test: str
    case: str
    passed: bool


class Training(msgspec.Struct, frozen=True):
    """One small training: how it ended, whether it is clean, and what torch counted."""

    what: str
    command: str
    ended: str
    state: str
    peak_allocated_bytes: int
    peak_reserved_bytes: int


class Tried(msgspec.Struct, frozen=True):
    """All that was seen under one version of torch."""

    environment: str
    versions: dict[str, str]
    cuda: str
    date: str
    cases: tuple[Case, ...]
    trainings: tuple[Training, ...]


class Record(msgspec.Struct, frozen=True):
    """Every version that was tried."""

    commit: str
    tried: tuple[Tried, ...]


def try_all(tell: Callable[[str], None]) -> Iterator[Tried]:
    """Each environment in turn.

    Raises:
        UnavailableError: an environment cannot be built, or a training measured nothing.
    """
    for name in environments():
        yield _tried(name, python_of(name, tell), tell)


def _tried(name: str, python: Path, tell: Callable[[str], None]) -> Tried:
    tell(f"{name}: the guard's tests")
    cases = tuple(_guard_cases(python))
    tell(f"{name}: trainings")
    ledgers = [(what, flags, _profiled(python, flags)) for what, flags in TRAININGS]
    last = ledgers[-1][2]
    return Tried(
        environment=name,
        versions=last.versions,
        cuda=last.passport["cuda"],
        date=last.passport["date"],
        cases=cases,
        trainings=tuple(_training(*ledger) for ledger in ledgers),
    )


def _guard_cases(python: Path) -> Iterator[Case]:
    """The outcome of each test, from pytest's report."""
    from xml.etree import ElementTree as ET  # noqa: PLC0415 - the file was written by the process started here

    with TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-o", "addopts=", f"--junitxml={report}"]
        subprocess.run(  # noqa: S603 - our own tests
            [python, "-m", "pytest", *options, GUARD_TESTS], cwd=CHECKOUT, capture_output=True, check=False
        )
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 - as above
            test, _, parameters = case.attrib["name"].partition("[")
            yield Case(test, parameters.partition("-")[0].rstrip("]"), passed=len(case) == 0)


def _profiled(python: Path, flags: tuple[str, ...]) -> Ledger:
    with TemporaryDirectory() as folder:
        ledger = Path(folder, "ledger.json")
        command: list[str | Path] = [python, "-m", "qmem", "profile", *COMMON, *flags, "--json", "-o", ledger]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)  # noqa: S603 - our own
        if not ledger.is_file():
            raise UnavailableError(f"{' '.join(flags)} measured nothing: {done.stderr.strip()}")
        return from_json(ledger.read_bytes())


def _training(what: str, flags: tuple[str, ...], ledger: Ledger) -> Training:
    assert ledger.peak.reserved_bytes is not None, "a profile reads it"
    return Training(
        what=what,
        command=" ".join(("qmem profile", *COMMON, *flags)),
        ended=ledger.ended,
        state=ledger.state,
        peak_allocated_bytes=ledger.peak.allocated_bytes,
        peak_reserved_bytes=ledger.peak.reserved_bytes,
    )
