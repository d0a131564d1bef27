"""Renew the outputs in README.md: ``python tests/update_readme.py``."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from test_readme import CAUGHT, README, SHOWN, caught_regression, stripped


def _renewed(match) -> str:
    words = [sys.executable, "-m", "qmem", *match["command"].split()[1:]]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    printed = subprocess.run(words, capture_output=True, text=True, env=environment, check=False).stdout
    return f"```console\n$ {match['command']}\n" + "\n".join(stripped(printed)) + "\n```"


def _caught(_match) -> str:
    with tempfile.TemporaryDirectory() as folder:
        printed = stripped(caught_regression(Path(folder)))
    return "<!-- caught regression -->\n```text\n" + "\n".join(printed) + "\n```"


if __name__ == "__main__":
    README.write_text(CAUGHT.sub(_caught, SHOWN.sub(_renewed, README.read_text())))
