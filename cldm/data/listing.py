"""What is in a folder or a file list: pictures, their captions, and ready-made hints, in a fixed order."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
IMAGE_KEYS = ("target", "image", "file_name", "path")
CAPTION_KEYS = ("prompt", "text", "caption")
HINT_KEYS = ("source", "hint", "conditioning_image", "conditioning_image_file_name")


@dataclass(frozen=True)
class Item:
    """One sample: the picture, its caption, and its ready-made hint if it has one. `name` is unique in a listing."""

    name: str
    image: Path
    caption: str = ""
    hint: Path | None = None


def list_items(path: str | Path) -> list[Item]:
    """The samples at `path`, which is one of

    - a folder in the layout of fill50k: prompt.json with lines of source, target, prompt;
    - a JSON-lines file with such lines, or with image / file_name and text / caption; paths are relative to it;
    - any folder of pictures, searched through its subfolders, with captions from metadata.jsonl files (Hugging
      Face's image folder) or from a .txt file beside each picture;
    - one picture.

    Raises ValueError if there is nothing.
    """
    path = Path(path).expanduser()
    if path.is_dir() and (path / "prompt.json").is_file():
        path = path / "prompt.json"
    if path.is_dir():
        items = _from_folder(path)
    elif path.suffix in (".json", ".jsonl"):
        items = _from_lines(path)
    elif path.is_file():
        items = [Item(path.name, path, _sidecar(path))]
    else:
        raise FileNotFoundError(f"{path}: there is no such folder, picture or JSON-lines file")
    if not items:
        raise ValueError(f"{path} holds no pictures; known endings: {', '.join(SUFFIXES)}")
    return items


def read_lines(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file. Raises ValueError that names the line that is none."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no JSON object: {error}") from error
            if not isinstance(content, dict):
                raise ValueError(f"{path}, line {number} must be a JSON object, got {type(content).__name__}")
            yield number, content


def _from_lines(path: Path) -> list[Item]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    items, seen = [], dict[str, int]()
    for number, line in read_lines(path):
        image = _first(line, IMAGE_KEYS)
        if not image:
            raise ValueError(f"{path}, line {number} names no picture; it needs one of {', '.join(IMAGE_KEYS)}")
        hint, caption = _first(line, HINT_KEYS), _first(line, CAPTION_KEYS)
        name = _plain(image)
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # one picture with several captions
            plain = Path(name)
            name = plain.with_name(f"{plain.stem}-{seen[name]}{plain.suffix}").as_posix()
        items.append(Item(name, path.parent / image, caption or "", path.parent / hint if hint else None))
    return items


def _from_folder(folder: Path) -> list[Item]:
    captions, hints = {}, {}
    for file in sorted(folder.rglob("metadata.jsonl")):
        for number, line in read_lines(file):
            name = _first(line, IMAGE_KEYS)
            if not name:
                raise ValueError(f"{file}, line {number} names no picture; it needs file_name")
            captions[file.parent / name] = _first(line, CAPTION_KEYS) or ""
            if hint := _first(line, HINT_KEYS):
                hints[file.parent / name] = file.parent / hint
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    used_as_hint = {*hints.values()}
    return [
        Item(
            path.relative_to(folder).as_posix(),
            path,
            captions[path] if path in captions else _sidecar(path),
            hints.get(path),
        )
        for path in paths
        if path not in used_as_hint
    ]


def _first(line: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((str(line[key]) for key in keys if line.get(key)), None)


def _plain(path: str) -> str:
    """A path that stays inside a folder it is appended to."""
    parts = [part for part in Path(path.replace("\\", "/")).parts if part not in ("..", "/", ".")]
    return "/".join(part.replace(":", "_") for part in parts) or "image"


def _sidecar(path: Path) -> str:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""
