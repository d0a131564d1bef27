"""How click is bent for every verb: headings in the help, no option twice, help that a closed pipe does not break.

It knows nothing of jobs and of what verbs do.
"""

from typing import Any

import click

from qmem.cli.streams import write_result

CONTEXT_SETTINGS = {"max_content_width": 100}
OUTPUT = "Output"
"""The heading of options that have none of their own."""


def help_option() -> click.Option:
    """``--help``."""
    return click.Option(
        ["-h", "--help"],
        is_flag=True, is_eager=True, expose_value=False, callback=_print_help, help="Show this message and exit.",
    )  # fmt: skip


def _print_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if value and not ctx.resilient_parsing:
        write_result(ctx.get_help() + "\n")
        ctx.exit()


def json_option() -> click.Option:
    """``--json``."""
    return click.Option(["--json", "as_json"], is_flag=True, help="Print JSON with integer bytes.")


class SectionOption(click.Option):
    """An option that the help shows under a heading."""

    def __init__(self, *declarations: Any, section: str, **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.section = section


class VerbCommand(click.Command):
    """A verb: its options under headings, and none of them given twice."""

    def __init__(self, name: str, *, params: list[click.Parameter], **settings: Any) -> None:
        params = [*params, help_option()]
        super().__init__(name, params=params, add_help_option=False, context_settings=CONTEXT_SETTINGS, **settings)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but ``--rank 8 --rank 16`` and ``--amp --no-amp`` are refused."""
        seen: set[str] = set()
        for param in self._given(ctx, args):
            once = isinstance(param, click.Option) and not param.multiple
            if once and param.name in seen and not ctx.resilient_parsing:
                raise click.UsageError(f"{'/'.join(param.opts + param.secondary_opts)} is given more than once", ctx)
            seen.add(str(param.name))
        return super().parse_args(ctx, args)

    def _given(self, ctx: click.Context, args: list[str]) -> list[click.Parameter]:
        """The parameters in the order in which they were given, each as often as it was."""
        try:
            return self.make_parser(ctx).parse_args(list(args))[2]
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, one heading after another."""
        lines: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            line = param.get_help_record(ctx)
            if isinstance(param, click.Option) and line is not None:
                lines.setdefault(getattr(param, "section", OUTPUT), []).append(line)
        for section, records in lines.items():
            with formatter.section(section):
                formatter.write_dl(records)
