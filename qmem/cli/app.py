"""The group of verbs: loads a verb when it is called, and turns every error into one line and an exit code."""

import importlib
import os
import sys
from typing import Any

import click

from qmem.cli.command import CONTEXT_SETTINGS, help_option
from qmem.cli.streams import prepare_streams, write_note, write_result
from qmem.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, QmemError, UnavailableError, UnsupportedError, UsageError

VERBS = (
    ("estimate", "Where the memory of a fine-tuning job goes, and which cards it fits."),
    ("profile", "Real training steps on a GPU, or on a phantom of one, beside the estimate."),
    ("report", "A stored ledger, as a table, Markdown, JSON or CSV."),
    ("compare", "Two stored ledgers side by side."),
    ("snapshot", "What held the memory in a torch memory snapshot, and what was fragmentation."),
    ("check", "The scenarios of a project against their baselines and budgets."),
    ("baseline", "Update, show or compare the baselines of a project's scenarios."),
    ("doctor", "What this machine can do, and what stands in the way."),
    ("models", "The models that qmem knows by name."),
    ("gpus", "The GPUs that qmem knows by name."),
)
"""Each verb is ``command`` in the module of its name in this package."""

COMPLETION_VARIABLE = "_QMEM_COMPLETE"
SHELLS = ("bash", "zsh", "fish")

_CODES: tuple[tuple[type[QmemError], str], ...] = (
    (UnsupportedError, "unsupported"),
    (UnavailableError, "unavailable"),
    (QmemError, "usage"),
)


class VerbGroup(click.Group):
    """Knows the verbs by name; imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The verbs, in the order of a first reading."""
        return [name for name, _ in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb, imported now."""
        if cmd_name not in dict(VERBS):
            return None
        command: click.Command = importlib.import_module(f"qmem.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The verbs with a line each, without importing any."""
        with formatter.section("Verbs"):
            formatter.write_dl(VERBS)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The verb of the first argument; ``qmem Qwen3-14B`` is answered with the verb that was meant."""
        if args and not args[0].startswith("-") and args[0] not in dict(VERBS):
            raise UsageError(f"there is no verb {args[0]!r}", hint=_meant(args[0]))
        return super().resolve_command(ctx, args)


def _meant(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, [name for name, _ in VERBS], n=1)
    return f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(name for name, _ in VERBS)}"


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        write_result(f"qmem {version('qmem-planner')}\n")
        ctx.exit()


def _print_completion(ctx: click.Context, param: click.Parameter, value: str | None) -> None:  # noqa: ARG001
    if value and not ctx.resilient_parsing:
        from click.shell_completion import get_completion_class

        shell = get_completion_class(value)
        assert shell is not None, "click knows the shells that are offered"
        write_result(shell(app, {}, "qmem", COMPLETION_VARIABLE).source() + "\n")
        ctx.exit()


app = VerbGroup(
    name="qmem",
    help="Plans the GPU memory of QLoRA, LoRA and full fine-tuning.\n\n"
    "Exit codes: 0 ok or fits, 1 finding (does not fit), 2 usage, 3 cannot answer here, 4 out of memory while "
    "profiling, 130 interrupted.",
    epilog="Example: qmem estimate Qwen3-14B --rank 8 --gpu rtx-4090",
    params=[
        click.Option(
            ["--version"],
            is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version.",
        ),
        click.Option(
            ["--show-completion"],
            type=click.Choice(SHELLS), is_eager=True, expose_value=False, callback=_print_completion,
            help='Print the completion script of a shell: eval "$(qmem --show-completion bash)".',
        ),
        help_option(),
    ],
    add_help_option=False,
    context_settings=CONTEXT_SETTINGS,
)  # fmt: skip


def run(arguments: list[str]) -> int:
    """Runs the command line and returns the process's exit code; prints, but never raises for bad input."""
    prepare_streams()
    try:
        return _run(arguments or ["--help"])
    except QmemError as error:
        return _refuse(error, arguments)
    except click.ClickException as error:
        return _refuse(_as_usage(error), arguments)
    except (click.Abort, KeyboardInterrupt):
        write_note("interrupted")
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001 - a defect must not leave with the code of a finding
        sys.excepthook(*sys.exc_info())
        write_note("this is a defect of qmem; please report it with the lines above")
        return EXIT_USAGE


def _run(arguments: list[str]) -> int:
    """As ``click.Command.main``, which would leave with 1 where a reader closes the pipe."""
    if COMPLETION_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(app, {}, "qmem", COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE])
    try:
        with app.make_context("qmem", list(arguments)) as context:
            code = app.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    return code if isinstance(code, int) else EXIT_OK


def _as_usage(error: click.ClickException) -> QmemError:
    context = getattr(error, "ctx", None)
    hint = f"see {context.command_path if context else 'qmem'} --help"
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities
        hint = f"did you mean {near[0]}?" if near else hint
        return UsageError(f"there is no option {error.option_name!r}", hint=hint)
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint=hint)


def _refuse(error: QmemError, arguments: list[str]) -> int:
    """The line on stderr, and in JSON mode the same as one object on stdout."""
    if "--json" in arguments:
        import msgspec

        code = next(word for kind, word in _CODES if isinstance(error, kind))
        refusal = {"error": {"code": code, "message": error.message, "hint": error.hint}}
        write_result(msgspec.json.encode(refusal).decode() + "\n")
    write_note(str(error))
    return error.exit_code
