"""What is in a folder or a file list: pictures, their captions, and ready-made hints, in a fixed order."""

import csv
import io
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.data.text import has_half_characters, numbered_lines, one_line, read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
IMAGE_KEYS = ("target", "image", "file_name", "path", "image_file_name")
CAPTION_KEYS = ("prompt", "text", "caption")
HINT_KEYS = ("source", "hint", "conditioning_image", "hint_file_name", "source_file_name",
             "conditioning_image_file_name")  # fmt: skip
METADATA = ("metadata.jsonl", "metadata.csv")
"""Names of the lists in Hugging Face's image folders; they also allow metadata.parquet, which is refused here."""


@dataclass(frozen=True)
class Item:
    """One sample: the picture, its caption, and its ready-made hint if it has one. `name` is unique in a listing."""

    name: str
    image: Path
    caption: str = ""
    hint: Path | None = None


ITEMS = "items.json"
"""In a run folder: the pictures that the run, and those that it started from, have trained on, and those that it held
out, by their resolved paths."""


def list_items(path: str | Path) -> list[Item]:
    """The samples at `path`, which is one of

    - a folder in the layout of fill50k: prompt.json with lines of source, target, prompt;
    - a list: a JSON-lines file with such lines, or with image / file_name and text / caption, or a JSON array of such
      objects, or a .csv with such columns; paths are relative to it;
    - any folder of pictures, searched through its subfolders, with captions from metadata.jsonl or metadata.csv
      (Hugging Face's image folder) or from a .txt file beside each picture;
    - one picture.

    Raises ValueError if there is nothing, and for what it cannot read, with the file and the line.
    """
    path = Path(path).expanduser()
    if path.is_dir() and (path / "prompt.json").is_file():
        path = path / "prompt.json"
    if path.is_dir():
        items = _from_folder(path)
    elif path.suffix in (".json", ".jsonl", ".csv"):
        items = _from_list(path)
    elif path.is_file():
        items = [Item(path.name, path, _sidecar(path))]
    else:
        raise FileNotFoundError(f"{path}: there is no such folder, picture or JSON-lines file")
    if not items:
        raise ValueError(f"{path} holds no pictures; known endings: {', '.join(SUFFIXES)}")
    return items


def read_list(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a list: JSON lines, a JSON array, CSV. ValueError names the line that is none."""
    text = read_text(path)
    if path.suffix == ".csv":
        yield from _csv_rows(path, text)
        return
    entries: Iterable[tuple[int, Any]]
    if text.lstrip().startswith("["):
        entries = enumerate(_json(text, str(path)), start=1)
    else:
        entries = ((i, _json(line, f"{path}, line {i}")) for i, line in numbered_lines(text))
    for number, content in entries:
        if not isinstance(content, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object, got {type(content).__name__}")
        yield number, content


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON object: {error}") from error


def _csv_rows(path: Path, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, line {reader.line_num} has another number of columns than its first line")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is no CSV: {error}") from error


def caption_of(line: Any) -> str:
    """The caption of an object, "" where it has none. ValueError for one that is no text, and for what is no object."""
    if not isinstance(line, Mapping):
        raise ValueError(f"it must be a JSON object, got {type(line).__name__}")
    return one_line(_first(line, CAPTION_KEYS) or "")


def _from_list(path: Path) -> list[Item]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    lines = [*read_list(path)]
    entries = [_entry(path, number, line) for number, line in lines]
    names = Names(_plain(image) for image, _, _ in entries)
    items = [
        Item(names(_plain(image)), _beside(path, image), caption, _beside(path, hint) if hint else None)
        for image, caption, hint in entries
    ]
    _tell_of_lost_captions(path, [line for _, line in lines])
    return items


class Names:
    """Names of items: those of pictures, and others for further captions of a picture, a-2.png, a-3.png, ..."""

    def __init__(self, pictures: Iterable[str]):
        self.taken, self.given = {*pictures}, set[str]()

    def __call__(self, picture: str) -> str:
        """The next name of a picture."""
        plain, found, number = Path(picture), picture, 1
        while found in (self.given if number == 1 else self.taken):
            number += 1
            found = plain.with_name(f"{plain.stem}-{number}{plain.suffix}").as_posix()
        self.given.add(found)
        self.taken.add(found)
        return found


def _entry(path: Path, number: int, line: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Picture, caption and hint that a line names."""
    try:
        image = _first(line, IMAGE_KEYS)
        if not image:
            raise ValueError(f"names no picture; it needs one of {', '.join(IMAGE_KEYS)}")
        return image, caption_of(line), _first(line, HINT_KEYS)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} {error}") from error


def _tell_of_lost_captions(path: Path, lines: list[dict[str, Any]]) -> None:
    """Warn where no line has a caption but some have text under a name that is not read."""
    if any(caption_of(line) for line in lines):
        return
    known = {*IMAGE_KEYS, *CAPTION_KEYS, *HINT_KEYS}
    others = sorted({str(k) for line in lines for k, v in line.items() if k not in known and isinstance(v, str)})
    if others:
        warnings.warn(f"{path} has no captions: none of {', '.join(CAPTION_KEYS)} among its keys; others are "
                      f"{', '.join(others[:5])}", stacklevel=2)  # fmt: skip


def _from_folder(folder: Path) -> list[Item]:
    paths = sorted(p for p in folder.rglob("*") if is_picture(p, folder))
    places = {path: path.resolve() for path in paths}  # lists may name a picture by any way to it
    told = _told(folder, {*places.values()})
    used_as_hint = {hint.resolve() for lines in told.values() for _, hint in lines if hint}
    items, names = [], Names(path.relative_to(folder).as_posix() for path in paths)
    for path in (path for path in paths if places[path] not in used_as_hint):
        for caption, hint in told.get(places[path]) or [(_sidecar(path), None)]:
            items.append(Item(names(path.relative_to(folder).as_posix()), path, caption, hint))
    _tell_of_other_sidecars(items)
    return items


def _told(folder: Path, pictures: Collection[Path]) -> dict[Path, list[tuple[str, Path | None]]]:
    """What the lists of an image folder tell of a picture: its captions, each with its ready hint."""
    told: dict[Path, list[tuple[str, Path | None]]] = {}
    for file in _metadata_files(folder):
        lines = [*read_list(file)]
        for number, line in lines:
            name, caption, hint = _entry(file, number, line)
            place = _beside(file, name).resolve()
            told.setdefault(place, []).append((caption, _beside(file, hint) if hint else None))
        _tell_of_lost_captions(file, [line for _, line in lines])
    if missing := [path for path in told if path not in pictures]:
        warnings.warn(f"the lists in {folder} name {len(missing)} pictures that are not there, {missing[0]} first",
                      stacklevel=2)  # fmt: skip
    return told


def _metadata_files(folder: Path) -> list[Path]:
    """The lists of an image folder, at most one in each folder."""
    found: dict[Path, Path] = {}
    for file in sorted(path for path in folder.rglob("metadata.*") if _shown(path, folder)):
        if file.name == "metadata.parquet":
            raise ValueError(f"{file} is not read; write it as metadata.jsonl (file_name, text) beside the pictures")
        if file.name in METADATA and found.setdefault(file.parent, file) != file:
            raise ValueError(f"{file.parent} has both {' and '.join(METADATA)}; remove one of them")
    return [*found.values()]


def is_picture(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is a picture to be read, by its name."""
    return path.suffix.lower() in SUFFIXES and _shown(path, folder) and path.is_file()


def _shown(path: Path, folder: Path) -> bool:
    """Whether no part of a path is hidden; archives of macOS have a broken twin ._NAME of every file."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)


def _beside(file: Path, name: str) -> Path:
    """The file that a list names. ValueError for web addresses."""
    if name.startswith(("http://", "https://", "s3://", "gs://")):
        raise ValueError(f"{file} names {name}; nothing is downloaded: name files")
    path = file.parent / Path(name).expanduser()
    other = file.parent / name.replace("\\", "/")  # as Windows writes them
    return other if "\\" in name and not path.is_file() else path


def _first(line: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of these that is there and not empty. ValueError for what is neither text nor a number."""
    for key in keys:
        value = line.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise ValueError(f"has {key} of type {type(value).__name__}, expected text")
        if isinstance(value, str) and has_half_characters(value):
            raise ValueError(f"has {key} with half a character (a lone surrogate), which no file can hold: {value!r}")
        if value is not None and str(value).strip():
            return str(value)
    return None


def _plain(path: str) -> str:
    """A path that stays inside a folder it is appended to."""
    parts = [part for part in Path(path.replace("\\", "/")).parts if part not in ("..", "/", ".")]
    return "/".join(part.replace(":", "_") for part in parts) or "image"


def text_beside(path: Path) -> Path | None:
    """NAME.txt, or NAME.TXT, beside NAME.png."""
    found = (path.with_suffix(ending) for ending in (".txt", ".TXT"))
    return next((text for text in found if text.is_file()), None)


def _sidecar(path: Path) -> str:
    text = text_beside(path)
    return one_line(read_text(text)) if text else ""


def _tell_of_other_sidecars(items: list[Item]) -> None:
    """Captions in files that are not read, as other tools write them, must not be lost without a word."""
    if any(item.caption for item in items):
        return
    for ending in (".caption", ".json", ".cap"):
        if beside := [text for item in items if (text := item.image.with_suffix(ending)).is_file()]:
            warnings.warn(f"no picture has a caption, and {len(beside)} have a {ending} file beside them ({beside[0]}, "
                          "...), which is not read: write NAME.txt or metadata.jsonl", stacklevel=2)  # fmt: skip
            return
