"""Figures of the paper's kind: samples of many runs side by side, and the samples of one run over its steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cldm.data.decoding import read_photo
from cldm.pictures import GAP, INK, PAPER, TEXT_SIZE
from cldm.tables.convergence import recorded
from ldm.files import read_lines

LINE = TEXT_SIZE + 4


def sheet(cells: Sequence[Sequence[Image.Image]], heads: Sequence[str], sides: Sequence[str]) -> Image.Image:
    """Pictures of one size in rows and columns, with a name above each column and before each row."""
    font = ImageFont.load_default(TEXT_SIZE)
    width, height = cells[0][0].size
    left = GAP + round(max(font.getlength(side) for side in sides)) + GAP
    page = Image.new("RGB", (left + len(heads) * (width + GAP), LINE + GAP + len(cells) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    for j, head in enumerate(heads):
        draw.text((left + j * (width + GAP), GAP // 2), head, INK, font)
    for i, (side, row) in enumerate(zip(sides, cells, strict=True)):
        top = LINE + GAP + i * (height + GAP)
        draw.text((GAP, top + height // 2 - TEXT_SIZE // 2), side, INK, font)
        for j, cell in enumerate(row):
            page.paste(cell, (left + j * (width + GAP), top))
    return page


def sample(evaluation: Path, setting: str, item: int, noise: int = 0) -> Image.Image:
    """An image of evaluate.py; ValueError if it is not there."""
    path = evaluation / "images" / setting / f"item_{item:05d}_noise_{noise}.png"
    if not path.is_file():
        raise ValueError(f"there is no {path}: make it with --evaluate (and keep_images=true)")
    return Image.fromarray(read_photo(path))


def history(run: Path) -> dict[int, dict[str, Any]]:
    """{step: line of previews/manifest.jsonl}; what came after the checkpoint of a resumption was given up."""
    path = run / "previews" / "manifest.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} is no run folder with previews: there is no {path}")
    found: dict[int, dict[str, Any]] = {}
    for line in read_lines(path):
        if _is_look(line):
            found[line["step"]] = line
        elif isinstance(line, dict) and isinstance(line.get("resumed"), int):
            found = {step: look for step, look in found.items() if step <= line["resumed"]}
    return dict(sorted(found.items()))


def _is_look(line: Any) -> bool:
    kinds = {"step": int, "file": str, "columns": list, "ids": list}
    return isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in kinds.items())


MADE = ("controlled", "sample", "reconstruction")
"""What a look calls the picture that the model made, the first that it has."""


def preview(run: Path, line: dict[str, Any], item: int, name: str, size: int | Sequence[int]) -> Image.Image:
    """One picture of a preview, see `cut`."""
    return cut(Image.fromarray(read_photo(run / "previews" / line["file"])), line, item, name, size)


def cut(page: Image.Image, line: dict[str, Any], item: int, name: str, size: int | Sequence[int]) -> Image.Image:
    """One picture of size (h, w), or one number for both, from a page that cldm.pictures.grid drew, two pairs side by
    side; ValueError for an item that is not on it."""
    (height, width), count = (size, size) if isinstance(size, int) else size, len(line["ids"])
    if not 0 <= item < count:
        raise ValueError(f"items of this run's previews are 0 to {count - 1}, got {item}")
    rows, header, columns = -(-count // 2), TEXT_SIZE + 6, line["columns"]
    pair, row = divmod(item, rows)
    left = GAP + pair * (len(columns) * (width + GAP) + 2 * GAP)
    x, y = left + columns.index(name) * (width + GAP), header + row * ((page.height - header) // rows)
    return page.crop((x, y, x + width, y + height))


def convergence_strip(run: Path, items: Sequence[int], size: int, metric: str, steps: int = 8) -> Image.Image:
    """Samples of a run over its steps, each item's hint before them, above the curve of `metric` (figure 4)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    looks = history(run)
    values = {step: line[metric] for step, line in looks.items() if line.get(metric) is not None}
    if not values:
        known = sorted({*next(iter(looks.values()))} - {"file", "step", "columns", "ids", "captions"})
        raise ValueError(f"previews of {run} are not measured by {metric!r}, but by {', '.join(known) or 'nothing'}")
    shown = [[*looks][i] for i in sorted({*np.linspace(0, len(looks) - 1, steps).round().astype(int).tolist()})]
    figure = Figure(figsize=(1.35 * (len(shown) + 1), 1.4 * len(items) + 2.4), layout="constrained", dpi=120)
    canvas = FigureCanvasAgg(figure)
    layout = figure.add_gridspec(len(items) + 1, len(shown) + 1, height_ratios=[1] * len(items) + [1.5])
    first = looks[shown[0]]["columns"]
    given, made = (next((name for name in names if name in first), first[0]) for names in (("hint", "image"), MADE))
    for i, item in enumerate(items):
        pictures = [preview(run, looks[shown[0]], item, given, size)]
        pictures += [preview(run, looks[step], item, made, size) for step in shown]
        for j, (title, picture) in enumerate(zip([given, *(f"step {step}" for step in shown)], pictures, strict=True)):
            axes = figure.add_subplot(layout[i, j])
            axes.imshow(picture)
            axes.set_axis_off()
            if i == 0:
                axes.set_title(title, fontsize=9)
    axes = figure.add_subplot(layout[len(items), :])
    axes.plot([*values], [*values.values()], marker=".", color="tab:blue")
    axes.plot(shown, [values.get(step, np.nan) for step in shown], "o", color="tab:blue")
    found = recorded(run)
    if found is not None and found.step is not None:
        axes.axvline(found.step, color="0.4", linestyle="--", label=str(found))
        axes.legend(loc="upper left", fontsize=8)
    axes.set(xlabel="optimizer step", ylabel=metric)
    if all(0 <= value <= 1 for value in values.values()):
        axes.set(ylim=(0, 1))
    axes.grid(alpha=0.3)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
