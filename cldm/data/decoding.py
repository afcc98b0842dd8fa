"""The one reader of pictures: a file or its bytes -> colours and transparency, then one of the policies on top.

decode() knows formats and nothing of meanings. What transparency means depends on what a picture is for, and is said
here once: a photo lies on white paper (`on_white`), a map on black, which means "nothing here" (`on_black`), and of a
mask white opaque pixels count (`as_mask`). Training, sampling, annotate and evaluation read through these alone.
"""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

Source = str | Path | bytes
"""A picture file, or its content."""

MIN_SIDE = 8  # pixels; smaller pictures are icons or accidents
MAX_PIXELS = 1 << 27  # 134 million: a gigabyte as float32 RGB and alpha

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what makes the picture upright."""


class PictureError(ValueError):
    """A picture, or what belongs to it, cannot be used. The message is one sentence with the file and the reason.

    Of a set of many it is replaced with a warning; of a job it is the end, before anything is drawn.
    """


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright.

    name: of the file, for messages. rgb (h, w, 3): uint8, or float32 in [0, 1] where a grey file holds more than 8 bits
    (colours are read with 8).
    alpha (h, w): float32 in [0, 1], 0 is transparent; None where every pixel is opaque. text: what a PNG says of
    itself. plain: every program reads the file the same way (RGB, 8 bits, upright, opaque).
    """

    name: str
    rgb: np.ndarray
    alpha: np.ndarray | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False


def decode(source: Source, what: str = "image", name: str = "", min_side: int = MIN_SIDE) -> Picture:
    """Read a picture of any mode: grey is tripled, palettes and CMYK are resolved, 16 bits are scaled, the camera's
    rotation is applied.

    what: the picture's role, for messages ("image", "hint", "mask"). name: of content without a file.
    Raises PictureError for what is no single still picture, holds values outside of its range, or has a side under
    `min_side` or more than MAX_PIXELS.
    """
    path, stream = _place(source, what, name)
    try:
        # a bomb is told by its size below, in our words
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream) as picture:
                _cut_key(picture)
                _check_kind(picture, path, what, min_side)
                picture.load()  # before EXIF is asked for: that would load a PNG too, and half of it after a failure
                turn = _turn(picture)
                rgb, alpha = _pixels(picture, path, what)
                told = {str(k): v for k, v in getattr(picture, "text", {}).items() if isinstance(v, str)}
                known = picture.format in ("PNG", "JPEG", "WEBP") and picture.mode == "RGB"
    except PictureError:
        raise
    except Exception as error:  # decoders of twenty formats raise whatever they come across in a broken file
        raise _unreadable(source, path, what, error) from error
    plain = known and turn is None and "transparency" not in picture.info
    return Picture(path, _turned(rgb, turn), None if alpha is None else _turned(alpha, turn), told, plain)


def picture_size(source: Source, what: str = "image", name: str = "") -> tuple[int, int]:
    """(h, w) of the upright picture, from its header alone. Raises PictureError."""
    path, stream = _place(source, what, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream) as picture:
                _check_pixels(picture, path, what)
                width, height = picture.size
                turn = _turn(picture)
    except PictureError:
        raise
    except Exception as error:
        raise _unreadable(source, path, what, error) from error
    return (width, height) if turn in (TURNS[5], TURNS[6], TURNS[7], TURNS[8]) else (height, width)


def read_values(path: str | Path) -> np.ndarray:
    """A map of another program as its file holds it, unscaled: (h, w) or (h, w, 3) RGB; uint8, uint16 or float32.

    PNG, TIFF, .npy and what OpenCV reads. Raises PictureError.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            read = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
            if read is None:
                raise ValueError("OpenCV cannot read it")
            values = cv2.cvtColor(read, cv2.COLOR_BGR2RGB) if read.ndim == 3 else read
    except Exception as error:  # as above
        raise PictureError(f"{path} is missing or not a readable map (PNG, TIFF, .npy)") from error
    if values.dtype.kind not in "uif" or values.ndim not in (2, 3) or 0 in values.shape:
        raise PictureError(f"{path} holds {values.dtype} of shape {values.shape}, expected numbers (h, w) or (h, w, 3)")
    return values


# ------------------------------------------------------------------ policies


def on_white(picture: Picture) -> np.ndarray:
    """A photo as (h, w, 3) uint8: what is transparent is the paper below it, white."""
    if picture.alpha is None and picture.rgb.dtype == np.uint8:
        return picture.rgb
    rgb = _unit(picture.rgb)
    if picture.alpha is not None:
        rgb = rgb * picture.alpha[:, :, None] + (1 - picture.alpha[:, :, None])
    return np.rint(rgb * 255).astype(np.uint8)


def on_black(picture: Picture) -> np.ndarray:
    """A map as (h, w, 3) float32 in [0, 1]: what is transparent says nothing, which is black in every kind of map."""
    rgb = _unit(picture.rgb)
    return rgb if picture.alpha is None else rgb * picture.alpha[:, :, None]


def as_mask(picture: Picture) -> np.ndarray:
    """A mask as (h, w) bool: True where it is brighter than middle grey and opaque, or, of a picture that is dark
    wherever it is opaque, where it is opaque: a brush of black on a transparent layer."""
    shown = on_black(picture).mean(axis=2)
    if picture.alpha is not None and dark_on_transparent(picture):
        return picture.alpha > 0.5
    return shown > 0.5


def dark_on_transparent(picture: Picture) -> bool:
    """Whether these are dark strokes on a transparent ground: a pen layer exported without its paper."""
    if picture.alpha is None:
        return False
    opaque = picture.rgb[picture.alpha > 0.5]
    return bool(opaque.size) and float(opaque.max()) < (0.5 if opaque.dtype.kind == "f" else 127.5)


def read_photo(source: Source, what: str = "image", name: str = "", min_side: int = MIN_SIDE) -> np.ndarray:
    """The photo in a file, (h, w, 3) uint8, see `decode` and `on_white`."""
    return on_white(decode(source, what, name, min_side))


# ------------------------------------------------------------------ inside


def _place(source: Source, what: str, name: str) -> tuple[str, Path | io.BytesIO]:
    """The name of a source, and what Pillow opens."""
    if isinstance(source, bytes):
        return name, io.BytesIO(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise PictureError(f"cannot use {what} {path}: there is no such file")
    return str(path), path


def _unreadable(source: Source, path: str, what: str, error: Exception) -> PictureError:
    if isinstance(error, Image.DecompressionBombError):
        return PictureError(f"cannot use {what} {path}: it has more than {MAX_PIXELS >> 20} million pixels")
    empty = len(source) == 0 if isinstance(source, bytes) else Path(path).stat().st_size == 0
    reason = "it is empty" if empty else "it is not a readable picture"
    return PictureError(f"cannot use {what} {path}: {reason}")


def _check_pixels(picture: Image.Image, path: str, what: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError(f"cannot use {what} {path}: it has {picture.width}x{picture.height} pixels, more than "
                           f"{MAX_PIXELS >> 20} million")  # fmt: skip


def _check_kind(picture: Image.Image, path: str, what: str, min_side: int) -> None:
    _check_pixels(picture, path, what)
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # MPO: a phone's JPEG with a second view of the same scene
        raise PictureError(f"cannot use {what} {path}: it has {frames} frames or layers; save the one to use as a PNG")
    if min(picture.size) < min_side:
        raise PictureError(f"cannot use {what} {path}: it is {picture.width}x{picture.height} pixels, "
                           f"a side must have {min_side} at least")  # fmt: skip


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF: the pixels are as good as without it
        return None


def _turned(pixels: np.ndarray, turn: Image.Transpose | None) -> np.ndarray:
    """(h, w) or (h, w, c) as Pillow's transpose gives it."""
    if turn is None:
        return pixels
    flipped = {
        Image.Transpose.FLIP_LEFT_RIGHT: lambda p: p[:, ::-1],
        Image.Transpose.ROTATE_180: lambda p: p[::-1, ::-1],
        Image.Transpose.FLIP_TOP_BOTTOM: lambda p: p[::-1],
        Image.Transpose.TRANSPOSE: lambda p: p.swapaxes(0, 1),
        Image.Transpose.ROTATE_270: lambda p: p[::-1].swapaxes(0, 1),
        Image.Transpose.TRANSVERSE: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        Image.Transpose.ROTATE_90: lambda p: p[:, ::-1].swapaxes(0, 1),
    }[turn]
    return np.ascontiguousarray(flipped(pixels))


def _pixels(picture: Image.Image, path: str, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    """rgb and alpha as in Picture, as the file has them turned."""
    mode = picture.mode
    if mode == "I" and picture.format == "TIFF":  # 16 bits are I;16
        raise PictureError(f"cannot use {what} {path}: it holds 32-bit integers, and nothing says which of them is "
                           "white; save it with 8 or 16 bits")  # fmt: skip
    if mode[0] == "I" or mode == "F":
        values = np.asarray(picture, dtype=np.float32) / np.float32(1 if mode == "F" else 65535)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN too
            expected = "[0, 1]" if mode == "F" else "16 bits"
            raise PictureError(f"cannot use {what} {path}: its values lie outside {expected}; rescale them first")
        key = picture.info.get("transparency")
        alpha = None if key is None else (np.asarray(picture) != key).astype(np.float32)
        return np.repeat(values[:, :, None], 3, axis=2), None if alpha is None or alpha.all() else alpha
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        if mode == "La":  # Pillow has no way from premultiplied grey to RGBA
            picture = picture.convert("LA")
        array = np.asarray(picture.convert("RGBA"))
        opaque = array[:, :, 3].min() == 255
        alpha = None if opaque else array[:, :, 3].astype(np.float32) / np.float32(255)
        return np.ascontiguousarray(array[:, :, :3]), alpha
    return np.array(picture.convert("RGB")), None


def _cut_key(picture: Image.Image) -> None:
    """Pillow reads colours of 16 bits with 8, but not the colour that a PNG calls transparent."""
    key = picture.info.get("transparency")
    if isinstance(key, tuple) and any("16" in str(tile[3]) for tile in getattr(picture, "tile", ())):
        picture.info["transparency"] = tuple(value >> 8 for value in key)


def _unit(rgb: np.ndarray) -> np.ndarray:
    """Colours as float32 in [0, 1]."""
    return rgb.astype(np.float32) / np.float32(255) if rgb.dtype == np.uint8 else rgb
