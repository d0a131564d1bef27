"""``python -m qmem``."""

from qmem.cli import main

main()
