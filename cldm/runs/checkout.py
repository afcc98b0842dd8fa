"""The checkout that this code runs from: where it lies, and which commit it was."""

import subprocess
from functools import cache
from pathlib import Path

from ldm.files import contents

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("ldm", "cldm")


@cache
def commit() -> str:
    """The commit of this process's code, see `commit_of`.

    Asked for once, and at once by whatever runs long: what is committed meanwhile is not the code that runs.
    """
    return commit_of(REPOSITORY)


@cache
def code() -> str:
    """What names this process's code: a digest of what its files hold, whatever is committed. 16 hex digits."""
    files = [path for room in ROOMS for path in sorted((REPOSITORY / room).rglob("*.py"))]
    return contents(files, REPOSITORY)[:16]


def commit_of(folder: Path) -> str:
    """The git commit checked out there now, with "+changes" if files differ from it, new ones of ROOMS included, or
    "unknown" where the folder is not the top of a git repository."""
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return "unknown"  # a copy within the repository of something else
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        added = _git(folder, "ls-files", "--others", "--exclude-standard", "--", *(f"{room}/*.py" for room in ROOMS))
        return head + ("+changes" if changed or added else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
