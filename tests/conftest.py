"""What only the top can do: enable pytester, which runs pytest in a folder of its own, and restore the interrupt.

A shell starts what runs in its background with interrupts ignored, and every process that a test starts would inherit
that: then no test could interrupt one.
"""

import signal

pytest_plugins = ["pytester"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
