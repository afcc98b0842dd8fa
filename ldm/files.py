"""Files that are written whole or not at all, whatever kills the program and however many write side by side."""

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LARGE = 2**26  # bytes of a file that it takes a moment to read
PARTIAL = ".partial"
"""How the names of unfinished files and folders end."""


FILES = ("folder", "weights", "path")
"""Parameters that name a file or folder: what lies there decides, not where."""


@contextmanager
def whole(path: str | Path, new: bool = False) -> Iterator[Path]:
    """A path to write a file or folder at, which takes the place of `path` if the block succeeds and vanishes if not.

    No two writers get the same one: of several that write `path` side by side, the last one's file stays. Makes the
    folder of `path`. new: FileExistsError where `path` exists.
    """
    path = Path(path)
    if new:
        _must_not_exist(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name[:40]}.{uuid.uuid4().hex[:12]}{PARTIAL}")  # names of 255 bytes have room
    try:
        yield partial
        if new:
            _must_not_exist(path)
        partial.replace(path)
    except Exception as error:
        if "No space left" in str(error):  # safetensors has an error of its own; neither names the file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def _must_not_exist(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it or choose another name")


class InUse(ValueError):
    """A folder that another process works in."""


@contextmanager
def locked(folder: Path, name: str = ".lock", wait: bool = False) -> Iterator[None]:
    """Make `folder`, and keep it, or what the lock file `name` stands for, for this block alone.

    Where another process has it: waits, or raises InUse.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)  # the operating system lets go of it when a process dies, however it dies
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise InUse(f"{folder} is in use by another process; wait for it, or stop it first") from None
    try:
        yield
    finally:
        lock.release()


def remove_partial(*folders: Path) -> None:
    """Delete what killed programs left unfinished in the folders themselves, which nobody else may be writing into."""
    for path in (path for folder in folders for path in folder.glob(f"*{PARTIAL}")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8), whole."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole; see `to_json`."""
    write_text(path, to_json(content, indent) + "\n")


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts: numbers that do not exist (nan, infinity) become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_lines(lines: Iterable[Any]) -> str:
    """One line of JSON for each item."""
    return "".join(to_json(line) + "\n" for line in lines)


def append_line(path: Path, content: Any) -> None:
    """Add a line of JSON to a file, in one piece: lines of several writers do not mix, and one that a kill cut short
    spoils no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
        cut = size > 0 and file.read(1) != b"\n"
        file.write(b"\n" * cut + to_json(content).encode() + b"\n")


def read_lines(path: Path) -> list[Any]:
    """The items of a file of `append_line`, without those that a kill cut short; [] where there is no file."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # cut short
            continue
    return found


def content(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names (hidden ones left out), in 64 hex digits."""
    path = Path(path).expanduser()
    if path.is_file():
        return _file(path)
    found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return contents(found, path)


def contents(files: Iterable[Path], root: Path = Path("/")) -> str:
    """SHA-256 of files and of their names below `root`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{os.path.relpath(file, root)}\0{_file(file)}\0".encode())
    return digest.hexdigest()


def also_in(files: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """Those of the files that are among the others too, under whatever name: of equal content. Others are read only
    where their size is that of a file."""
    wanted: dict[int, list[Path]] = {}
    for file in files:
        wanted.setdefault(file.stat().st_size, []).append(file)
    alike: dict[int, set[str]] = {}
    for other in others:
        if (size := other.stat().st_size) in wanted:
            alike.setdefault(size, set()).add(_file(other))
    return [file for size, found in wanted.items() for file in found if size in alike and _file(file) in alike[size]]


def listing(path: str | Path) -> str:
    """Digest of the names and sizes of a file, or of all files below a folder but hidden ones: what can be known of
    many pictures without reading them."""
    top, digest = Path(path), hashlib.sha256()
    if top.is_file():
        return hashlib.sha256(f"{top.name} {top.stat().st_size}".encode()).hexdigest()
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder, name)
            digest.update(f"{file.relative_to(top)} {file.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def sizes(files: Iterable[Path]) -> str:
    """Digest of the names and sizes of these files; -1 for one that is not there."""
    lines = [f"{file.name} {file.stat().st_size if file.is_file() else -1}\n" for file in files]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _file(path: Path) -> str:
    stat = path.stat()
    return _read(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _read(path: Path, number: int, size: int, written: int, changed: int) -> str:
    """Digests of large files are kept from one process to the next, under all that tells of a change."""
    known = [str(path), number, size, written, changed]
    if size < LARGE:
        return _digest(path)
    book = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cldm" / "digests.jsonl"
    with suppress(OSError):
        for there, digest in read_lines(book):
            if there == known:
                return digest
    digest = _digest(path)
    with suppress(OSError):  # no home to keep it in
        append_line(book, [known, digest])
    return digest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
