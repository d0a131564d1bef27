"""The command line: one thin file per verb that parses, calls and renders."""


def main() -> None:
    """The console entry: runs the command line and exits with its code.

    Garbage collection is off: a verb lives for a moment, and the collector would cost a tenth of it.
    """
    import gc
    import sys

    gc.disable()

    try:
        from qmem.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        from qmem.errors import EXIT_INTERRUPTED

        code = EXIT_INTERRUPTED
    sys.exit(code)
