"""The folder of a drawing, with copies of the pictures that it was drawn from."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cldm.app.wish import Control, Wish
from cldm.runs.folder import Refused


def new_folder(parent: Path, place: str | None = None) -> Path:
    """An empty folder: `place`, or one named by the time of day that nobody else has."""
    if place is not None:
        shutil.rmtree(parent / place, ignore_errors=True)
    stamp, number = place or time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


@contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Nothing is left of a folder whose drawing was refused."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder)
        raise


@contextmanager
def named(names: Mapping[Path, str]) -> Iterator[None]:
    """A refusal gives the files by these names: where they lie on this machine says nothing to who uploaded them."""
    try:
        yield
    except Refused as error:
        raise Refused(renamed(str(error), names)) from error


def renamed(text: str, names: Mapping[Path, str]) -> str:
    """The text with these names in place of the paths."""
    for path, name in names.items():
        text = text.replace(str(path), name)
    return text


def with_copies(wish: Wish, folder: Path) -> Wish:
    """The wish with its pictures copied into the folder: uploads vanish, a command line shall not."""
    units = [_copied(unit, folder, f"-{i}" if i > 1 else "") for i, unit in enumerate((wish.control, *wish.more), 1)]
    image, mask = _copy(wish.image, folder, "image"), _copy(wish.mask, folder, "mask")
    return replace(wish, control=units[0], more=tuple(units[1:]), image=image, mask=mask)


def _copied(unit: Control, folder: Path, number: str) -> Control:
    hint, photo = _copy(unit.hint, folder, f"hint{number}"), _copy(unit.photo, folder, f"photo{number}")
    return replace(unit, hint=hint, photo=photo)


def _copy(path: Path | None, folder: Path, name: str) -> Path | None:
    return None if path is None else Path(shutil.copyfile(path, folder / f"{name}{path.suffix.lower()}"))
