"""Pictures and maps to one size: the aspect ratio is kept, and what moves a picture moves its map."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cldm.conditions import Condition
from cldm.data.decoding import MAX_PIXELS, PictureError

Size = tuple[int, int]
"""(h, w) in pixels."""

PALETTE_COLORS = 256  # a colour map with no more colours than this is a label map: its colours must not be mixed
MOST_APART = 0.02  # share by which the aspect ratios of pictures that lie over each other may differ
MULTIPLE = 8  # an autoencoder halves three times
SIDES = re.compile(
    r"(?<![^\W_])(?:"
    r"(?:left|right)(?:most|wards?|hand(?:ed)?)?|(?:anti|counter)?clockwise"
    r"|(?:north|south)?(?:east|west)(?:wards?)?|o['\u2019]?clock|clocks?|watch ?faces?"
    r"|says?|saying|reads|titled|entitled|label(?:l?ed|s)?|numbers?|numbered|numerals?|digits?"
    r"|(?:licen[cs]e|number)[ -]?plates?|alphabets?|typography|typographic|fonts?|calligraphy"
    r"|texts?|words?|wording|wordmarks?|letters?|lettering|lettered|(?:hand)?writings?|(?:hand)?written|inscriptions?"
    r"|signs?|signage|signposts?|signboards?|signatures?|logos?|captions?|captioned|subtitles?|watermarks?"
    r")(?![^\W_])"
    r"|[\"\u201c\u201d\u201e\u00ab\u00bb]|(?<!\w)['\u2018\u2019](?=\w)[^'\u2018\u2019]*['\u2018\u2019](?!\w)",  # quoted
    re.IGNORECASE,
)
"""Captions that a mirror image would make wrong: whole words, also in compounds with - and _."""


def check_size(size: int | Sequence[int], key: str = "data.size") -> Size:
    """(h, w) of `size`, one number for a square. Raises ValueError unless both are positive multiples of 8."""
    sides = [size, size] if isinstance(size, int) else [*size] if isinstance(size, Sequence) else [size]
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise ValueError(f"{key} must be a whole number or [height, width], got {size}")
    height, width = sides
    for side in (height, width):
        if side < MULTIPLE or side % MULTIPLE:
            near = max(round(side / MULTIPLE), 1) * MULTIPLE
            raise ValueError(f"{key}={size}: sides must be multiples of {MULTIPLE}, because latents are {MULTIPLE} "
                             f"times smaller; {near} is near {side}")  # fmt: skip
    if height * width > MAX_PIXELS:
        raise ValueError(f"{key}={size} has more than {MAX_PIXELS >> 20} million pixels")
    return height, width


def bucket_sizes(size: int | Sequence[int], step: int = 64, max_aspect: float = 2.0) -> list[Size]:
    """Sizes in multiples of `step` whose area is at most that of `size`, one for each width, from tall to wide."""
    height, width = check_size(size)
    if step % MULTIPLE:
        raise ValueError(f"data.bucket_step must be a multiple of {MULTIPLE}, got {step}")
    found = []
    for w in range(step, int(math.sqrt(height * width * max_aspect)) + step, step):
        h = height * width // w // step * step
        if h and 1 / max_aspect <= w / h <= max_aspect:
            found.append((h, w))
    if not found:
        raise ValueError(f"data.bucket_step={step} is too coarse for data.size={size}")
    return found


def nearest_bucket(size: Sequence[int], buckets: Sequence[Size]) -> int:
    """The number of the bucket whose aspect ratio is nearest to that of `size` (h, w), on a log scale."""
    aspect = math.log(size[1] / size[0])
    return min(range(len(buckets)), key=lambda i: abs(math.log(buckets[i][1] / buckets[i][0]) - aspect))


@dataclass(frozen=True)
class Augment:
    """What changes from epoch to epoch. The default changes nothing.

    flip: probability of mirroring. Never where the caption names sides or text, nor where a ready-made hint of an
        asymmetric condition (normals, poses) cannot be mirrored; flip_all mirrors them as well.
    random_crop: cut at a random place instead of the centre.
    vary: draw the condition's parameters anew for every sample (Canny thresholds, scribble strokes, holes);
        only for hints that are made on the fly.
    """

    flip: float = 0.0
    flip_all: bool = False
    random_crop: bool = False
    vary: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.augment.flip is a probability, got {self.flip}")

    @property
    def active(self) -> bool:
        return self.flip > 0 or self.random_crop or self.vary


def may_flip(caption: str, condition: Condition, ready_made: bool) -> bool:
    """Whether a mirrored sample is a true one."""
    return not SIDES.search(caption) and (condition.mirrors or not ready_made)


def cover(image: np.ndarray, size: Size, at: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Crop a picture (h, w, c) to the aspect ratio of `size` and resize it to it: (*size, c).

    `at` says where the crop lies, each of (down, right) from 0 to 1; the centre is 0.5.
    """
    cut = _crop(image, size, at)
    if cut.shape[:2] == size:
        return cut
    return cv2.resize(cut, size[::-1], interpolation=cv2.INTER_AREA if _shrinks(cut, size) else cv2.INTER_CUBIC)


def cover_map(pixels: np.ndarray, size: Size, condition: Condition, at: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """As `cover`, for a map (h, w, 3) float32: no new colours in label maps and holes, no gaps in thin lines, no grey
    in binary maps."""
    cut = _crop(pixels, size, at)
    if cut.shape[:2] == size:
        return cut
    shrinks = _shrinks(cut, size)
    if condition.binary and shrinks:
        return _shrink_lines(cut, size)
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    codes = condition.nearest or condition.reads_alpha or (condition.polarity == "color" and _is_palette(cut))
    if condition.binary or codes:
        method = cv2.INTER_NEAREST
    return cv2.resize(cut, size[::-1], interpolation=method)


def check_alike(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """PictureError unless pictures that lie over each other have one shape; (h, w) by what the picture is called."""
    (first, (height, width)), *others = shapes.items()
    for name, (h, w) in others:
        if abs((width / height) / (w / h) - 1) > MOST_APART:
            raise PictureError(
                f"{name} of {w}x{h} pixels does not lie over {first} of {width}x{height}: their shapes differ"
            )


def _crop(pixels: np.ndarray, size: Size, at: tuple[float, float]) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    h, w = max(min(round(size[0] / scale), height), 1), max(min(round(size[1] / scale), width), 1)
    top, left = round((height - h) * at[0]), round((width - w) * at[1])
    return np.ascontiguousarray(pixels[top : top + h, left : left + w])


def _shrinks(pixels: np.ndarray, size: Size) -> bool:
    return pixels.shape[0] > size[0] or pixels.shape[1] > size[1]


def _shrink_lines(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Binary (h, w, 3) -> binary (*size, 3): white where the centre of any white pixel falls.

    So no line gets a gap, however thin. Averaging would fade thin lines, and a threshold after it would break
    them where they cross the corners of the new pixels.
    """
    (height, width), small = pixels.shape[:2], np.zeros((*size, 3), dtype=np.float32)
    rows, columns = np.nonzero(pixels[:, :, 0] > 0.5)
    small[(2 * rows + 1) * size[0] // (2 * height), (2 * columns + 1) * size[1] // (2 * width)] = 1
    return small


def _is_palette(pixels: np.ndarray) -> bool:
    """Whether (h, w, 3) in [0, 1] holds so few colours that they must be labels. Shades of grey are none."""
    if np.array_equal(pixels[:, :, 0], pixels[:, :, 1]) and np.array_equal(pixels[:, :, 1], pixels[:, :, 2]):
        return False
    codes = np.rint(pixels.reshape(-1, 3) * 255).astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
    few = len(np.unique(codes[:: max(len(codes) // 4096, 1)])) <= PALETTE_COLORS  # a photo is told by a few pixels
    return few and len(np.unique(codes)) <= PALETTE_COLORS
