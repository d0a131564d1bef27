"""A new flag is a deliberate change: it must be added to flags.txt, beside the code."""

from pathlib import Path

import click
import pytest

from qmem.cli.app import VERBS, app
from qmem.cli.job_options import FLAGS, SETTABLE
from qmem.job import Job

FROZEN = Path(__file__).with_name("flags.txt")


def live_flags() -> list[str]:
    context = click.Context(app)
    commands = [("qmem", app), *((f"qmem {name}", app.get_command(context, name)) for name, _ in VERBS)]
    return [flag for path, command in commands for flag in flags_of(path, command, context)]


def flags_of(path: str, command: click.Command, context: click.Context) -> list[str]:
    """The flags of a verb, and of the verbs below it."""
    own = [f"{path} {' '.join(param.opts + param.secondary_opts)}" for param in command.get_params(context)]
    below = command.commands.items() if isinstance(command, click.Group) and command is not app else ()
    return [*own, *(flag for name, verb in below for flag in flags_of(f"{path} {name}", verb, context))]


def test_verbs_and_flags_are_those_that_were_agreed() -> None:
    assert live_flags() == FROZEN.read_text(encoding="utf-8").splitlines()


def test_every_field_of_a_job_is_reached_by_a_flag_or_by_set() -> None:
    assert {*(flag.field for flag in FLAGS), *SETTABLE, "model", "facts"} == set(Job.__struct_fields__)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.field)
def test_the_help_of_a_flag_offers_the_values_of_its_field(flag) -> None:
    from typing import get_args

    values = [value for part in get_args(Job.__annotations__[flag.field]) for value in (get_args(part) or (part,))]
    command = app.get_command(click.Context(app), "estimate")
    option = next(param for param in command.params if param.name == flag.field)
    for value in values:
        if isinstance(value, str):
            assert value in option.help
