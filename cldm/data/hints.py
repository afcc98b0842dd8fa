"""Hints: the ready maps of others, maps that `annotate` wrote, and maps made of a picture. Training and sampling share
every line of this, so that a branch is given what it was trained on.

A ready map of white lines on black may come as a drawing: strokes of any colour become white, ink on light or
transparent paper is inverted, and a binary map is binary again after a scan or a JPEG. A map that `annotate` wrote says
so inside its PNG (`Origin`) and is taken as it is.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cldm.conditions import Condition, get_condition, warn_if_blank
from cldm.data.decoding import Picture, PictureError, Source, dark_on_transparent, decode, on_black, read_photo
from cldm.data.transforms import Size, cover, cover_map

MAX_ASPECT = 4.0
"""How many times longer a picture may be than the shape asked for; above, most of it would be cut off."""

PICTURED = 0.25
"""The share of grey pixels above which a map of lines looks like a picture: soft edges of strokes make fewer."""

ORIGIN = "hint"
"""Key of the text in a PNG of `annotate`."""

Notify = Callable[[str], None]


def silent(_: str) -> None:
    """No notes."""


# ------------------------------------------------------------------ maps of annotate


@dataclass(frozen=True)
class Origin:
    """What `annotate` and `evaluate.py` write into a map: the condition, its parameters, and the size (h, w) of the
    picture it saw."""

    condition: str
    params: dict[str, Any]
    size: Size

    @classmethod
    def of(cls, condition: Condition, size: Size) -> "Origin":
        """That of a map that `condition` makes at `size`. Paths of models are left out: they may move."""
        params = {} if condition.needs_weights else json.loads(json.dumps(asdict(condition), default=repr))
        return cls(condition.name, {**params, "version": condition.version}, size)

    @classmethod
    def read(cls, picture: Picture) -> "Origin | None":
        """None for maps of others."""
        try:
            told = json.loads(picture.text[ORIGIN])
            height, width = told["size"]
            return cls(str(told["condition"]), dict(told["params"]), (int(height), int(width)))
        except (KeyError, TypeError, ValueError):
            return None

    def info(self) -> PngInfo:
        """As the PNG holds it."""
        found = PngInfo()
        found.add_text(ORIGIN, json.dumps(asdict(self), sort_keys=True))
        return found

    def check(self, condition: Condition, name: str) -> None:
        """ValueError unless `condition` is that of the map."""
        wanted = Origin.of(condition, self.size)
        if condition.name != "none" and wanted != self:
            raise ValueError(
                f"{name} is a map of {self.condition} {self.params}, the configuration says {wanted.condition} "
                f"{wanted.params}: set condition to what the set was annotated with, or data.on_the_fly=true"
            )


def training_map(picture: Picture, condition: Condition, size: Size, notify: Notify = silent) -> np.ndarray | None:
    """A ready map as in `ready_map`, or None where it has to be made anew of its picture.

    That is so for a map that `annotate` made at another size than `size`: a map of a large picture, shrunk, has finer
    and denser lines than one that is made at the size of the drawing, as sampling does.
    """
    origin = Origin.read(picture)
    if origin is None or condition.name == "none":
        return ready_map(picture, condition, notify=notify)
    origin.check(condition, picture.name)
    if origin.size == size:
        return ready_map(picture, condition)
    if condition.needs_weights:
        raise ValueError(
            f"{picture.name} was made at {origin.size[1]}x{origin.size[0]} pixels, training is at {size[1]}x{size[0]}: "
            f"annotate with --size {size[0]} {size[1]}, or set data.on_the_fly=true"
        )
    notify(f"{picture.name}: not made at {size[1]}x{size[0]}, so it is made anew at that size, as sampling does "
           f"(annotate --size {size[0]} {size[1]} saves the work)")  # fmt: skip
    return None


# ------------------------------------------------------------------ ready maps


def ready_map(
    picture: Picture, condition: Condition, invert: bool | None = None, notify: Notify = silent
) -> np.ndarray:
    """A map of `condition`'s kind, (h, w, 3) float32 in [0, 1]; -1 where an inpainting hole is.

    For white lines on black: strokes of any colour become white; a dark drawing on light or transparent ground is
    inverted (`invert` forces or forbids that for every kind of map); a binary map gets black and white only.
    Transparency is black, "nothing here". `notify` hears of an inversion. Raises PictureError for an inpainting
    picture without a hole.
    """
    if condition.reads_alpha:
        return _holed(picture)
    if Origin.read(picture) is not None and invert is None:
        return on_black(picture)
    lines = condition.polarity == "white_on_black"
    dark_strokes = lines and invert is not False and dark_on_transparent(picture)
    if dark_strokes:
        assert picture.alpha is not None
        # on black they would vanish: their opacity is the drawing
        weight = picture.alpha[:, :, None]
        pixels = 1 - (on_black(picture) + 1 - weight)
        notify(f"{picture.name}: dark strokes on a transparent ground, inverted")
    else:
        pixels = on_black(picture)
        if invert or (invert is None and lines and float(pixels.mean()) > 0.5):
            pixels = 1 - pixels
            notify(f"{picture.name}: {'as asked for' if invert else 'dark lines on a light ground'}, inverted")
    if lines:
        pixels = np.repeat(pixels.max(axis=2, keepdims=True), 3, axis=2)  # a red stroke is a stroke
        if condition.binary and float(((pixels > 0.25) & (pixels < 0.75)).mean()) > PICTURED:
            notify(f"{picture.name}: looks like a picture, not like a map of lines; its map is made where it is given "
                   "as a picture (sample.py: photo=)")  # fmt: skip
    return _binarize(pixels) if condition.binary else pixels


def _holed(picture: Picture) -> np.ndarray:
    hole = None if picture.alpha is None else picture.alpha < 0.5
    if hole is None or not hole.any():
        raise PictureError(
            f"{picture.name} has no hole to paint in: give mask (and image), or make its hole transparent"
        )
    return np.where(hole[:, :, None], np.float32(-1), on_black(Picture(picture.name, picture.rgb)))


def _binarize(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) of equal channels -> the same with values 0 and 1 only, split where Otsu's threshold lies."""
    levels = np.rint(pixels[:, :, 0] * 255).astype(np.uint8)
    if int(levels.max()) - int(levels.min()) < 32:  # nothing drawn: do not blow up the noise of a scan
        return (pixels > 0.5).astype(np.float32)
    _, lines = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.repeat(lines[:, :, None], 3, axis=2).astype(np.float32)


# ------------------------------------------------------------------ tensors


def made_hint(image: np.ndarray, condition: Condition) -> Tensor:
    """The hint (3, h, w) that `condition` makes of a picture (h, w, 3) uint8 at the size of the drawing.

    Raises PictureError, without the picture's name, where the condition cannot.
    """
    try:
        found = condition(image)
    except (cv2.error, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise PictureError(f"condition {condition.name} failed: {error}") from error
    return map_tensor(condition.to_hint(np.ascontiguousarray(found)))


def map_tensor(pixels: np.ndarray) -> Tensor:
    """A map (h, w, 3) float32 as a tensor (3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))


def image_tensor(image: np.ndarray) -> Tensor:
    """A picture (h, w, 3) uint8 as a tensor (3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1.0


def stored(hint: Tensor) -> Tensor:
    """A hint as caches keep it: 8 bits, or 16 where it has holes (-1), as long as nothing is lost; else float32."""
    levels = (hint * 255).round()
    kept = levels.to(torch.int16) if bool((levels < 0).any()) else levels.to(torch.uint8)
    return kept if torch.equal(restored(kept), hint) else hint.float()


def restored(kept: Tensor) -> Tensor:
    """The hint that `stored` kept, float32."""
    return kept if kept.dtype == torch.float32 else kept.float() / 255


def load_hint(
    source: Source,
    size: int | Size | None = None,
    *,
    condition: Condition | str = "canny",
    invert: bool | None = None,
    notify: Notify = print,
) -> Tensor:
    """The picture at `source` as a hint for `condition`: (3, h, w) float32 in [0, 1]; -1 in an inpainting hole.

    `size` is (h, w), or one number for a square, or None to keep the picture's own. The aspect ratio is kept: the
    picture is scaled until it covers the size, and what sticks out is cut off evenly on both sides. See `ready_map`
    for what becomes of its colours.

    `notify` gets one line for each thing done that the author might not expect (resized and cropped, inverted). Warns
    (HintWarning) if the result is blank or looks wrong. Raises PictureError if the file is missing or unreadable, is
    an animation, has a side under 8 pixels, or is more than MAX_ASPECT times as long as the shape asked for.
    """
    condition = get_condition(condition) if isinstance(condition, str) else condition
    picture = decode(source, "hint")
    origin = Origin.read(picture)
    if origin and condition.name not in (origin.condition, "none"):
        notify(f"{picture.name}: a map of {origin.condition}, for a ControlNet of {condition.name}")
    own = picture.rgb.shape[:2]
    target = _target_size(own, size)
    _check_shape(picture.name, own, target, square_is_ideal=size is None)
    pixels = ready_map(picture, condition, invert, notify)
    if own != target:
        notify(_resize_note(picture.name, own, target))
        pixels = cover_map(pixels, target, condition)
    hint = map_tensor(pixels)
    warn_if_blank(hint, condition.polarity, what=picture.name)
    return hint


def load_photo(source: Source, size: Size, what: str = "photo") -> np.ndarray:
    """A photo (h, w, 3) uint8 that covers `size`, as training cuts it."""
    return cover(read_photo(source, what), size)


def _target_size(own: tuple[int, ...], size: int | Size | None) -> Size:
    """(h, w) of the result. Raises ValueError for sizes that are not positive."""
    height, width = own if size is None else (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {size}")
    return height, width


def _check_shape(name: str, own: tuple[int, ...], target: Size, square_is_ideal: bool) -> None:
    """Refuse pictures that are too long for the shape asked for."""
    height, width = own
    wanted = 1.0 if square_is_ideal else target[0] / target[1]
    stretch = height / width / wanted
    if max(stretch, 1 / stretch) > MAX_ASPECT:
        aim = "a square" if square_is_ideal else f"{target[1]}x{target[0]}"
        raise PictureError(
            f"cannot use hint {name}: {width}x{height} pixels is too {'tall' if stretch > 1 else 'wide'} "
            f"for {aim}; crop it first"
        )


def _resize_note(name: str, own: tuple[int, ...], target: Size) -> str:
    height, width = own
    scale = max(target[0] / height, target[1] / width)
    across, down = 1 - target[1] / scale / width, 1 - target[0] / scale / height
    cut = f"{across:.0%} of its width" if across > down else f"{down:.0%} of its height"
    cropped = f", {cut} cropped" if max(across, down) > 0.001 else ""
    return f"{name}: {width}x{height} resized to cover {target[1]}x{target[0]}{cropped}"
