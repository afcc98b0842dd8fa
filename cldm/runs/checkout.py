"""The checkout that this code runs from: where it lies, and which commit it was."""

import re
import subprocess
from functools import cache
from pathlib import Path

from ldm.files import contents

REPOSITORY = Path(__file__).resolve().parents[2]


@cache
def commit() -> str:
    """The commit of this process's code, see `commit_of`.

    Asked for once, and at once by whatever runs long: what is committed meanwhile is not the code that runs.
    """
    return commit_of(REPOSITORY)


@cache
def code() -> str:
    """What names this process's code: its commit, and where that leaves something open what its files hold."""
    files = [path for room in ("ldm", "cldm") for path in sorted((REPOSITORY / room).rglob("*.py"))]
    known = commit()
    return known if re.fullmatch(r"[0-9a-f]+", known) else f"{known}-{contents(files, REPOSITORY)[:16]}"


def commit_of(folder: Path) -> str:
    """The git commit checked out there now, with "+changes" if files differ from it, or "unknown" outside of git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
