"""What the commands that measure and write a report share: telling, writing whole files, ending with the right code."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from qmem.errors import QmemError, UsageError
from qmem.integrations.environments import CHECKOUT

REPORTS = CHECKOUT / "reports"


def tell(sentence: str) -> None:
    """A line of progress."""
    click.echo(sentence, err=True)


def run(main: Callable[[], None]) -> None:
    """Run a command's function; an error is one line and the exit code it stands for."""
    try:
        if not REPORTS.is_dir():
            raise UsageError(f"there is no folder {REPORTS}", hint="run this from a checkout, installed with pip -e")
        main()
    except QmemError as error:
        tell(f"Error: {error}")
        sys.exit(error.exit_code)


def commit() -> str:
    """The commit of the checkout."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


def write_data(path: Path, value: msgspec.Struct) -> None:
    """Write a struct as JSON that can be read and compared line by line."""
    write_text(path, msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    tell(f"wrote {path}")
