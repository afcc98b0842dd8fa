"""Pictures that people look at: grids of images with captions, and curves."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.files import whole

GAP = 6
TEXT_SIZE = 11
INK, PAPER = (40, 40, 40), (255, 255, 255)


def to_pil(image: Tensor) -> Image.Image:
    """(3, h, w) in [-1, 1], clamped and rounded. ValueError for values that are not finite: they are no picture."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError("an image holds values that are not finite (NaN or infinity); it is not written")
    pixels = ((image.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def grid(columns: Mapping[str, Tensor], captions: Sequence[str], pairs: int = 2) -> Image.Image:
    """A sheet: one row per item, its images (n, 3, h, w) in [-1, 1] side by side under their names, its caption below.

    `pairs` rows stand side by side, so that a sheet of many items is not a long strip.
    """
    names, (height, width) = list(columns), next(iter(columns.values())).shape[-2:]
    font = ImageFont.load_default(TEXT_SIZE)
    widest = max(font.getlength(name) for name in names)
    heads = ImageFont.load_default(TEXT_SIZE * min(1.0, (width + GAP / 2) / widest))  # over small pictures too
    row_width = len(names) * (width + GAP)
    lines = [textwrap.wrap(caption, max(row_width // 6, 12)) for caption in captions]
    text_height = (TEXT_SIZE + 3) * max(map(len, lines), default=0)
    row_height, header = height + text_height + GAP, TEXT_SIZE + 6
    rows = -(-len(captions) // pairs)
    sheet = Image.new("RGB", (pairs * (row_width + 2 * GAP) + GAP, header + rows * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, wrapped in enumerate(lines):
        row, pair = i % rows, i // rows
        left, top = GAP + pair * (row_width + 2 * GAP), header + row * row_height
        for j, name in enumerate(names):
            x = left + j * (width + GAP)
            draw.text((x, 2), name, INK, heads)
            sheet.paste(to_pil(columns[name][i]), (x, top))
        draw.multiline_text((left, top + height), "\n".join(wrapped), INK, font, spacing=2)
    return sheet


def save_atomically(picture: Image.Image, path: str | Path, **options: Any) -> None:
    """Write a PNG, whole. options: see Pillow's PNG writer."""
    with whole(path) as partial:
        picture.save(partial, format="PNG", **options)


@dataclass(frozen=True)
class Panel:
    """A plot of curves over optimizer steps: name -> (steps, values). log: a logarithmic axis, else shares of 1."""

    title: str
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    log: bool = False


def plot(path: str | Path, panels: Sequence[Panel], mark: tuple[int, str] | None) -> None:
    """Panels side by side, with `mark` (a step and what it is) as a vertical line through each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(panels), 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for name, (steps, values) in panel.curves.items():
            few = len(steps) <= 50
            axes.plot(
                steps, np.asarray(values, dtype=float), marker="." if few else "", alpha=1 if few else 0.4, label=name
            )
        if mark is not None:
            axes.axvline(mark[0], color="0.4", linestyle="--", label=mark[1])
        axes.set(xlabel="optimizer step", title=panel.title)
        axes.set(yscale="log") if panel.log else axes.set(ylabel="share", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8
        )  # beside the curves, not on them
    canvas.draw()
    save_atomically(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), path)
