"""Processes for the tests: one process can have one phantom."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).with_name("scripts")


def run(*command, cwd=None, **environment):
    """A Python process that has ended."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def run_script(name, *arguments, **environment):
    """What a script of this folder printed on its last line, as JSON."""
    done = run(SCRIPTS / name, *arguments, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
