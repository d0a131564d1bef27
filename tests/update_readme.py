"""Renew the outputs in README.md: ``python tests/update_readme.py``."""

import os
import subprocess
import sys

from test_readme import README, SHOWN, stripped


def _renewed(match) -> str:
    words = [sys.executable, "-m", "qmem", *match["command"].split()[1:]]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    printed = subprocess.run(words, capture_output=True, text=True, env=environment, check=False).stdout
    return f"```console\n$ {match['command']}\n" + "\n".join(stripped(printed)) + "\n```"


if __name__ == "__main__":
    README.write_text(SHOWN.sub(_renewed, README.read_text()))
