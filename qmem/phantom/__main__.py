"""``python -m qmem.phantom --gpu rtx-4090 -- script.py args``: any script, unmodified, on a phantom GPU."""

import os
import shutil
import sys

import click

from qmem.catalogue import find_gpu
from qmem.errors import EXIT_CANNOT, QmemError
from qmem.phantom import loader
from qmem.units import parse_bytes


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--gpu", required=True, metavar="GPU", help="The card to simulate: rtx-4090, a100-80, ...")
@click.option("--memory", metavar="AMOUNT", help="Its capacity, in place of the card's own: 22GiB.")
@click.option("--devices", default=1, show_default=True, help="How many of it.")
@click.option("--beside-driver", is_flag=True, help="Although this machine has a real GPU driver.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(gpu: str, memory: str | None, devices: int, command: tuple[str, ...], *, beside_driver: bool) -> None:
    """Run a script, with its child processes, on a phantom GPU.

    COMMAND is a Python script and its arguments, python's own -m or -c, or a program such as torchrun.
    """
    device = loader.describe(find_gpu(gpu), memory=parse_bytes(memory) if memory else None, devices=devices)
    loader.refuse_bad_place(beside_driver=beside_driver)
    click.echo(f"{loader.describe_in_words(device)}; values read from it are not true", err=True)
    program = [*_interpreter(command[0]), *command]
    sys.stderr.flush()
    os.execve(program[0], program, {**os.environ, **device.environment()})  # noqa: S606 - to run it is the purpose


def _interpreter(first: str) -> list[str]:
    """Python, unless ``first`` is a program of its own."""
    is_program = not first.startswith("-") and not os.path.exists(first) and shutil.which(first)  # noqa: PTH110
    return ["/usr/bin/env"] if is_program else [sys.executable]


if __name__ == "__main__":
    try:
        main()
    except QmemError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"Error: the script could not be started: {error}", err=True)
        sys.exit(EXIT_CANNOT)
