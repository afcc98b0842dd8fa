"""Pictures for a page without a network: each once, small, in the page itself."""

import base64
import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cldm.data.decoding import read_photo
from cldm.reports.groups import Group
from cldm.runs.listing import RunFolder
from cldm.tables.sheets import MADE, cut, history

ITEMS = (0, 1, 2, 3)
"""The items of a grid whose report names none."""

LARGEST = 192  # pixels of the longer side


class Album:
    """Pictures by the key under which a page shows them."""

    def __init__(self) -> None:
        self.pictures: dict[str, str] = {}

    def add(self, picture: Image.Image) -> str:
        """Take a picture in; returns its key, the same for the same pixels."""
        picture = picture.convert("RGB")
        picture.thumbnail((LARGEST, LARGEST))
        key = hashlib.blake2b(picture.tobytes(), digest_size=6).hexdigest()
        if key not in self.pictures:
            file = io.BytesIO()
            picture.save(file, "WEBP", quality=85, method=2)
            self.pictures[key] = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        return key

    def add_file(self, path: Path | None) -> str | None:
        """Take the picture of a file in; None where it cannot be read."""
        try:
            return None if path is None else self.add(Image.fromarray(read_photo(path)))
        except ValueError:
            return None


def grid(runs: Sequence[tuple[int, RunFolder]], items: Sequence[int], looks: int, album: Album) -> dict[str, Any]:
    """Samples of fixed held-out items over the steps of runs (each with its group's number); runs without previews are
    left out. Steps: evenly chosen, at most `looks`, from those that any run has. ValueError: no run has an item."""
    looked = {one: lines for one in runs if (lines := _history(one[1].folder))}
    count = max((len(line["ids"]) for lines in looked.values() for line in lines.values()), default=0)
    if count and (unknown := [item for item in items if item >= count]):
        raise ValueError(f"items: no run's previews have {', '.join(map(str, unknown))}; they have 0 to {count - 1}")
    steps = sorted({step for lines in looked.values() for step in lines})
    if not steps:
        return {"steps": [], "items": []}
    chosen = [steps[i] for i in sorted({*np.linspace(len(steps) - 1, 0, looks).round().astype(int).tolist()})]
    pages = []
    for item in items or ITEMS:
        rows = []
        for (group, run), lines in looked.items():
            cells = [_cell(run, lines.get(step), item, MADE, album) for step in chosen]
            if any(cells):
                first = next(iter(lines.values()))
                rows.append({"group": group, "seed": run.config.get("seed"), "cells": cells,
                             "caption": _caption(first, item),
                             "hint": _cell(run, first, item, ("hint", "image"), album)})  # fmt: skip
        if rows:
            pages.append({"item": item, "rows": rows, "same": len({row["caption"] for row in rows}) == 1})
    return {"steps": chosen, "items": pages}


def _history(run: Path) -> dict[int, dict[str, Any]]:
    try:
        return history(run)
    except ValueError:
        return {}


def _caption(look: dict[str, Any], item: int) -> str:
    captions = look.get("captions")
    return str(captions[item]) if isinstance(captions, list) and item < len(captions) else ""


def _cell(run: RunFolder, line: dict[str, Any] | None, item: int, names: Sequence[str], album: Album) -> str | None:
    """The first of the named pictures that a look has of an item; None where it has none."""
    name = next((name for name in names if line and name in line["columns"]), None)
    size = run.config.get("size")
    if line is None or name is None or size is None:
        return None
    try:
        return album.add(cut(_page(run.folder / "previews" / line["file"]), line, item, name, size))
    except (ValueError, TypeError):
        return None


@lru_cache(128)
def _page(path: Path) -> Image.Image:
    return Image.fromarray(read_photo(path))


def pictured(groups: Sequence[Group], most: int) -> list[tuple[int, RunFolder]]:
    """Runs that have room for pictures on the page, with their groups' numbers: all if they are few, else the first of
    each of the first groups."""
    every = [(i, run) for i, group in enumerate(groups) for run in group.runs]
    return every if len(every) <= most else [(i, group.runs[0]) for i, group in enumerate(groups[:most])]
