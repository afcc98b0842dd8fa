"""Promises of the pictures: every image in its place, pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.pictures import GAP, PAPER, TEXT_SIZE, Panel, grid, plot, save_atomically, to_pil

HEADER = TEXT_SIZE + 6


def plain(value: float, count: int = 3, height: int = 40, width: int = 60) -> torch.Tensor:
    """Images of one grey each: value, value + 0.2, ..."""
    return (value + 0.2 * torch.arange(count)).reshape(-1, 1, 1, 1).expand(-1, 3, height, width)


def test_to_pil_maps_the_range_to_bytes_and_clamps():
    image = torch.tensor([-1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 4).expand(3, 1, 4)
    assert np.asarray(to_pil(image))[0, :, 0].tolist() == [0, 128, 255, 255]
    coloured = torch.stack([torch.ones(2, 5), -torch.ones(2, 5), torch.zeros(2, 5)])
    assert to_pil(coloured).size == (5, 2)
    assert to_pil(coloured).getpixel((4, 1)) == (255, 0, 128)


def test_bytes_survive_the_way_through_a_batch():
    values = torch.arange(256).float() / 127.5 - 1
    assert np.asarray(to_pil(values.expand(3, 1, 256)))[0, :, 1].tolist() == list(range(256))


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_grid_holds_every_image_where_it_belongs(pairs):
    columns = {"hint": plain(-1.0), "drawn": plain(-0.5)}
    sheet = grid(columns, ["one", "two", "three"], pairs=pairs)
    rows = -(-3 // pairs)
    row_width, row_height = 2 * (60 + GAP), 40 + (TEXT_SIZE + 3) + GAP
    assert sheet.size == (pairs * (row_width + 2 * GAP) + GAP, HEADER + rows * row_height)
    pixels = np.asarray(sheet)
    for item in range(3):
        for j, images in enumerate(columns.values()):
            left = GAP + item // rows * (row_width + 2 * GAP) + j * (60 + GAP)
            top = HEADER + item % rows * row_height
            found = pixels[top : top + 40, left : left + 60]
            assert (found == np.asarray(to_pil(images[item]))).all()
            assert (pixels[top : top + 40, left - 1] == PAPER).all()  # a gap on its left
            assert (pixels[top + 40 : top + 40 + TEXT_SIZE, left : left + 60] < 200).any() == (j == 0)  # caption


def test_a_long_caption_is_wrapped_and_not_cut():
    short, long = (grid({"image": plain(0.0, 1)}, [text], pairs=1) for text in ("a", "word " * 20))
    assert long.size[1] > short.size[1]
    assert long.size[0] == short.size[0]


def test_a_picture_replaces_its_predecessor_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.png"
    save_atomically(to_pil(torch.ones(3, 4, 4)), path)
    assert Image.open(path).getpixel((0, 0)) == (255, 255, 255)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]

    def fail(self, target, *_, **__):
        with open(target, "wb") as file:
            file.write(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_atomically(to_pil(torch.zeros(3, 4, 4)), path)
    assert Image.open(path).getpixel((0, 0)) == (255, 255, 255)


def test_a_plot_shows_its_mark_in_every_panel(tmp_path):
    steps = [0, 50, 100]
    fidelity = Panel("fidelity", {"edge F1": (steps, [0.2, float("nan"), 0.9]), "shape IoU": (steps, [0.1, 0.5, 0.8])})
    losses = Panel("loss", {"training": ([*range(100)], [0.5] * 100)}, log=True)
    plot(tmp_path / "plain.png", [fidelity, losses], None)
    plot(tmp_path / "marked.png", [fidelity, losses], (50, "sudden convergence"))
    plain, marked = (np.asarray(Image.open(tmp_path / name)) for name in ("plain.png", "marked.png"))
    assert plain.shape == marked.shape
    changed = (plain != marked).any(axis=(0, 2))
    half = plain.shape[1] // 2
    assert changed[:half].any()
    assert changed[half:].any()
