"""What a baseline wants to know of the git repository: the commit, and whether the tree is as committed."""

import subprocess
from pathlib import Path

from qmem.errors import UsageError

PROFILES = "profiles/"


def commit_of(folder: Path) -> str:
    """The commit that is checked out; empty where there is no repository."""
    return _git(folder, "rev-parse", "HEAD")


def check_committed(folder: Path) -> None:
    """Refuse a tree with tracked changes outside ``profiles/``: a baseline must belong to a commit.

    Raises:
        UsageError: naming the first changed file.
    """
    lines = _git(folder, "status", "--porcelain", "--untracked-files=no").splitlines()
    changed = [line[2:].strip() for line in lines if not line[2:].strip().startswith(PROFILES)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UsageError(
            f"{changed[0]}{more} is changed and not committed: the baseline would belong to no commit",
            hint="commit first, or add --allow-dirty",
        )


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the words are written above
            ["git", *words],  # noqa: S607 - whichever git the user has
            cwd=folder, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.rstrip() if done.returncode == 0 else ""
