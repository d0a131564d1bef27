"""The command line: one thin file per verb that parses, calls and renders."""


def main() -> None:
    """The console entry: runs the command line and exits with its code."""
    import sys

    try:
        from qmem.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        from qmem.errors import EXIT_INTERRUPTED

        code = EXIT_INTERRUPTED
    sys.exit(code)
