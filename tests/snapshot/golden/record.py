"""Make the snapshots of this folder again, on a phantom GPU: ``python record.py``.

torch's allocator is real, no kernel runs.  Paths are shortened, so that they say nothing of the machine.
"""

import lzma
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = FOLDER.parent / "scripts"
GOLDENS = (
    ("out-of-memory.pickle", "train.py", ("--memory", "2GiB"), (), ""),
    ("late.pickle.xz", "late.py", ("--devices", "2"), ("100000",), ""),
    ("late-expandable.pickle.xz", "late.py", ("--devices", "2"), ("100000",), "expandable_segments:True"),
    ("cut.pickle.xz", "late.py", ("--devices", "2"), ("60",), ""),
)


def record(script, phantom, arguments, settings):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pickle"
        subprocess.run(
            [sys.executable, "-m", "qmem.phantom", "--gpu", "rtx-4090", *phantom, "--", SCRIPTS / script, path,
             *arguments],
            check=True, env={"PYTORCH_ALLOC_CONF": settings, "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        return pickle.loads(path.read_bytes())  # noqa: S301 - it was made above


def shorten(snapshot):
    entries = [entry for trace in snapshot["device_traces"] for entry in trace]
    blocks = [block for segment in snapshot["segments"] for block in (segment, *segment["blocks"])]
    for holder in entries + blocks:
        for frame in holder.get("frames", ()):
            installed = re.sub(r"^.*/(?=site-packages/)", "/venv/", frame["filename"])
            frame["filename"] = re.sub(r"^.*/scripts/", "/project/", installed)
    return snapshot


def main():
    for name, script, phantom, arguments, settings in GOLDENS:
        content = pickle.dumps(shorten(record(script, phantom, arguments, settings)), protocol=4)
        (FOLDER / name).write_bytes(lzma.compress(content) if name.endswith(".xz") else content)


if __name__ == "__main__":
    main()
