"""Hints from picture files, drawn by hand or by another program, of any size and pixel format."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cldm.conditions import Condition, Polarity, get_condition, warn_if_blank

MIN_SIDE = 8
MAX_ASPECT = 4.0
"""How many times longer a picture may be than the shape asked for; above, most of it would be cut off."""

_GROUND = 0.0
"""What transparency means: "nothing here", which is black in lines, depth, poses and label maps alike."""

_PALETTE_COLORS = 256  # a colour map with no more colours than this is a label map: its colours must not be mixed


class HintFileError(ValueError):
    """A picture file cannot be used. The message is one sentence that names the file and the reason."""


def read_image(path: str | Path, min_side: int = MIN_SIDE, content: bytes | None = None) -> np.ndarray:
    """The photo at `path` as (h, w, 3) uint8 RGB: transparency on white, grey tripled, CMYK and palettes resolved,
    16 bits scaled to 8, the camera's rotation applied. Raises HintFileError for what is no single still picture
    and for a side under `min_side` pixels. `content`: the file's bytes, where they are at hand."""
    path = Path(path)
    picture = _open(path, "image", content)
    if min(picture.size) < min_side:
        raise HintFileError(
            f"cannot use image {path}: it is {picture.width}x{picture.height} pixels, "
            f"a side must have {min_side} at least"
        )
    if picture.mode in ("RGB", "L", "CMYK", "YCbCr") and "transparency" not in picture.info:
        return np.array(picture.convert("RGB"))
    pixels, alpha = _to_float(picture, path, "image")
    if alpha is not None:
        pixels = pixels * alpha[:, :, None] + (1 - alpha[:, :, None])
    return np.rint(pixels * 255).astype(np.uint8)


def read_map(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """A ready-made map at `path`, (h, w, 3) uint8 RGB, or (h, w, 4) where it has transparency (an inpainting hole).

    Nothing is inverted or resized. Raises HintFileError as `read_image` does.
    """
    path = Path(path)
    pixels, alpha = _to_float(_open(path, content=content), path)
    planes = [pixels] if alpha is None else [pixels, alpha[:, :, None]]
    return np.rint(np.concatenate(planes, axis=2) * 255).astype(np.uint8)


def resize_map(pixels: np.ndarray, size: tuple[int, ...], condition: Condition) -> np.ndarray:
    """A map (h, w, c) uint8 at `size` (h, w): no new colours in label maps, no gaps in thin lines, no grey in
    binary maps."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    method = cv2.INTER_AREA if pixels.shape[0] > size[0] else cv2.INTER_LINEAR
    if condition.binary and pixels.shape[2] == 3 and pixels.shape[0] > size[0]:
        return (_shrink_lines(pixels > 127, (size[0], size[1])) * 255).astype(np.uint8)
    if condition.binary or condition.nearest or pixels.shape[2] == 4:
        method = cv2.INTER_NEAREST
    return cv2.resize(pixels, (size[1], size[0]), interpolation=method)


def load_hint(
    path: str | Path,
    size: int | tuple[int, int] | None = None,
    *,
    condition: Condition | str = "canny",
    invert: bool | None = None,
    notify: Callable[[str], None] = print,
) -> Tensor:
    """The picture at `path` as a hint for `condition`: (3, h, w) float32 in [0, 1].

    `size` is (h, w), or one number for a square, or None to keep the picture's own. The aspect ratio is kept:
    the picture is scaled until it covers the size, and what sticks out is cut off evenly on both sides.

    Any mode is read: grey is tripled, palettes are resolved, 16-bit values are scaled, transparency becomes
    the condition's background (black), and the camera's rotation is applied. For maps of white lines on
    black, strokes of any colour become white; a dark drawing on a light or transparent ground is recognised
    and inverted (`invert` forces or forbids that for every kind of map); and a binary map stays binary:
    scaled down, no line gets a gap; scaled up, pixels become blocks.

    `notify` gets one line for each thing done that the author might not expect (resized and cropped,
    inverted). Warns (HintWarning) if the result is blank or looks wrong. Raises HintFileError if the file is
    missing or unreadable, is an animation, has a side under 8 pixels, or is more than 4 times as long as the
    shape asked for.
    """
    path = Path(path).expanduser()
    condition = get_condition(condition) if isinstance(condition, str) else condition
    pixels, alpha = _to_float(_open(path), path)
    target = _target_size(pixels.shape[:2], size)
    _check_shape(path, pixels.shape[:2], target, square_is_ideal=size is None)

    pixels, dark_strokes = _flatten(pixels, alpha, condition.polarity, invert)
    flip, reason = _should_invert(pixels, dark_strokes, condition.polarity, invert)
    if flip:
        pixels = 1 - pixels
        notify(f"{path}: {reason}, inverted")
    if condition.polarity == "white_on_black":
        pixels = np.repeat(pixels.max(axis=2, keepdims=True), 3, axis=2)  # a red stroke is a stroke
    if condition.binary:
        pixels = _binarize(pixels)
    if pixels.shape[:2] != target:
        notify(_resize_note(path, pixels.shape[:2], target))
        pixels = _cover(pixels, target, condition)
    hint = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
    warn_if_blank(hint, condition.polarity, what=str(path))
    return hint


def _open(path: Path, what: str = "hint", content: bytes | None = None) -> Image.Image:
    """The decoded picture, upright. Raises HintFileError for whatever is no single still picture."""
    if content is None and not path.is_file():
        raise HintFileError(f"cannot use {what} {path}: there is no such file")
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as picture:
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":  # MPO: a phone's JPEG with a second view of the same scene
                raise HintFileError(
                    f"cannot use {what} {path}: it has {frames} frames or layers; save the one to use as a PNG"
                )
            return ImageOps.exif_transpose(picture)
    except HintFileError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        size = path.stat().st_size if content is None else len(content)
        reason = "it is empty" if size == 0 else "it is not a readable picture"
        raise HintFileError(f"cannot use {what} {path}: {reason} ({type(error).__name__})") from error


def _to_float(picture: Image.Image, path: Path, what: str = "hint") -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels (h, w, 3) and alpha (h, w), float32 in [0, 1]; alpha is None where the picture is opaque."""
    if picture.mode[0] == "I" or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float32) / (1 if picture.mode == "F" else 65535)
        if not (values.min() >= 0 and values.max() <= 1):  # also catches NaN
            expected = "[0, 1]" if picture.mode == "F" else "16 bits"
            raise HintFileError(f"cannot use {what} {path}: its values lie outside {expected}; rescale them first")
        return np.repeat(values[:, :, None], 3, axis=2), None
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        array = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
        alpha = array[:, :, 3]
        return array[:, :, :3], alpha if alpha.min() < 1 else None
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255, None


def _target_size(own: tuple[int, ...], size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(h, w) of the result. Raises ValueError for sizes that are not positive."""
    height, width = own if size is None else (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {size}")
    return height, width


def _check_shape(path: Path, own: tuple[int, ...], target: tuple[int, int], square_is_ideal: bool) -> None:
    """Refuse pictures that are too small, or too long for the shape asked for."""
    height, width = own
    if min(height, width) < MIN_SIDE:
        raise HintFileError(
            f"cannot use hint {path}: it is {width}x{height} pixels, a side must have {MIN_SIDE} at least"
        )
    wanted = 1.0 if square_is_ideal else target[0] / target[1]
    stretch = height / width / wanted
    if max(stretch, 1 / stretch) > MAX_ASPECT:
        aim = "a square" if square_is_ideal else f"{target[1]}x{target[0]}"
        raise HintFileError(
            f"cannot use hint {path}: {width}x{height} pixels is too {'tall' if stretch > 1 else 'wide'} "
            f"for {aim}; crop it first"
        )


def _flatten(
    pixels: np.ndarray, alpha: np.ndarray | None, polarity: Polarity, invert: bool | None
) -> tuple[np.ndarray, bool]:
    """Pixels without transparency, and whether they are dark strokes, which then get a white ground.

    A pen layer exported without its paper is black on transparent: on black it would vanish.
    """
    if alpha is None:
        return pixels, False
    opaque = pixels[alpha > 0.5]
    dark_strokes = polarity == "white_on_black" and invert is not False
    dark_strokes = dark_strokes and opaque.size > 0 and bool(opaque.max() < 0.5)
    ground = 1.0 if dark_strokes else _GROUND
    weight = alpha[:, :, None]
    return pixels * weight + ground * (1 - weight), dark_strokes


def _should_invert(pixels: np.ndarray, dark_strokes: bool, polarity: Polarity, invert: bool | None) -> tuple[bool, str]:
    """Whether to invert, and why, in words. Only line maps show their polarity: a drawing is mostly paper."""
    if dark_strokes:
        return True, "dark strokes on a transparent ground"
    if invert is not None:
        return invert, "as asked for"
    return polarity == "white_on_black" and bool(pixels.mean() > 0.5), "dark lines on a light ground"


def _binarize(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) of equal channels -> the same with values 0 and 1 only, split where Otsu's threshold lies."""
    levels = np.rint(pixels[:, :, 0] * 255).astype(np.uint8)
    if int(levels.max()) - int(levels.min()) < 32:  # nothing drawn: do not blow up the noise of a scan
        return (pixels > 0.5).astype(np.float32)
    _, lines = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.repeat(lines[:, :, None], 3, axis=2).astype(np.float32)


def _resize_note(path: Path, own: tuple[int, ...], target: tuple[int, int]) -> str:
    (height, width), (top, left) = own, _margins(own, target)
    cut = f"{2 * left / width:.0%} of its width" if left > top else f"{2 * top / height:.0%} of its height"
    cropped = f", {cut} cropped" if left or top else ""
    return f"{path}: {width}x{height} resized to cover {target[1]}x{target[0]}{cropped}"


def _margins(own: tuple[int, ...], target: tuple[int, int]) -> tuple[int, int]:
    """Rows to cut at the top and columns at the left, and as many opposite, to get the target's aspect."""
    height, width = own
    scale = max(target[0] / height, target[1] / width)
    return round((height - target[0] / scale) / 2), round((width - target[1] / scale) / 2)


def _cover(pixels: np.ndarray, target: tuple[int, int], condition: Condition) -> np.ndarray:
    """Crop the centre to the target's aspect ratio, then resize: (h, w, 3) -> (*target, 3)."""
    height, width = pixels.shape[:2]
    top, left = _margins((height, width), target)
    pixels = np.ascontiguousarray(pixels[top : height - top, left : width - left])
    shrinks = pixels.shape[0] > target[0] or pixels.shape[1] > target[1]
    if condition.binary and shrinks:
        return _shrink_lines(pixels, target)
    if condition.binary or (condition.polarity == "color" and _is_palette(pixels)):
        method = cv2.INTER_NEAREST
    else:
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(pixels, target[::-1], interpolation=method)


def _shrink_lines(pixels: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """Binary (h, w, 3) -> binary (*target, 3): white where the centre of any white pixel falls.

    So no line gets a gap, however thin. Averaging would fade thin lines, and a threshold after it would break
    them where they cross the corners of the new pixels.
    """
    (height, width), small = pixels.shape[:2], np.zeros((*target, 3), dtype=np.float32)
    rows, columns = np.nonzero(pixels[:, :, 0])
    small[(2 * rows + 1) * target[0] // (2 * height), (2 * columns + 1) * target[1] // (2 * width)] = 1
    return small


def _is_palette(pixels: np.ndarray) -> bool:
    """Whether (h, w, 3) in [0, 1] holds so few colours that they must be labels."""
    codes = np.rint(pixels * 255).astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
    return len(np.unique(codes)) <= _PALETTE_COLORS
