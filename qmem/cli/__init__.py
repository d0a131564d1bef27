"""The command line: one thin file per verb that parses, calls and renders."""


def main() -> None:
    """The console entry: runs the command line and exits with its code.

    A verb lives for a moment.  So the garbage collector is off, and the process leaves without taking the interpreter
    down object by object: each would cost about a tenth of ``qmem estimate``.
    """
    import gc
    import os
    import sys
    from contextlib import suppress

    gc.disable()

    try:
        from qmem.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        from qmem.errors import EXIT_INTERRUPTED

        code = EXIT_INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a reader that went away, a stream that is closed
            stream.flush()
    os._exit(code)
