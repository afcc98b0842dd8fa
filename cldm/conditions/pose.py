"""OpenPose skeletons: drawn from keypoints, which an OpenPose JSON file or an extractor of yours gives."""

import colorsys
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from cldm.conditions import Condition, Polarity

Point = tuple[float, float] | None
"""x, y in pixels, or None where it was not seen."""

_CODES = """
ff0000 ff5500 ffaa00 ffff00 aaff00 55ff00 00ff00 00ff55 00ffaa 00ffff 00aaff 0055ff 0000ff 5500ff aa00ff ff00ff ff00aa
ff0055
"""
BODY_COLORS = tuple(tuple(bytes.fromhex(code)) for code in _CODES.split())
"""Of the 18 points: nose, neck, right shoulder, elbow, wrist, left ones, right hip, knee, ankle, left ones, right eye,
left eye, right ear, left ear. The 17 limbs have the first 17."""

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_FINGERS = ((0, 1, 2, 3, 4), (0, 5, 6, 7, 8), (0, 9, 10, 11, 12), (0, 13, 14, 15, 16), (0, 17, 18, 19, 20))
HAND_EDGES = tuple((a, b) for finger in _FINGERS for a, b in itertools.pairwise(finger))

_PARTS = {"body": "pose", "face": "face", "left_hand": "hand_left", "right_hand": "hand_right"}  # OpenPose's keys


@dataclass(frozen=True)
class Person:
    """Keypoints of one person: 18 of the body, 21 of each hand, 70 of the face; a part may be empty."""

    body: tuple[Point, ...] = ()
    left_hand: tuple[Point, ...] = ()
    right_hand: tuple[Point, ...] = ()
    face: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Pose(Condition):
    """Skeletons of the people that `extractor` finds: a callable, image (h, w, 3) uint8 -> list of Person.

    No extractor ships with this project: give a callable (a `_partial_` in a config), or draw JSON files of any
    pose program with `render_pose(*read_openpose(path))`.
    """

    extractor: Callable[[np.ndarray], Sequence[Person]] | None = None

    name: ClassVar[str] = "pose"
    polarity: ClassVar[Polarity] = "color"
    mirrors: ClassVar[bool] = False  # left and right limbs have their own colours

    @property
    def computable(self) -> bool:
        return self.extractor is not None

    def extract(self, image: np.ndarray) -> np.ndarray:
        if self.extractor is None:
            raise ValueError(
                "condition 'pose' needs condition.extractor (image -> people); ready skeleton maps can be used as they "
                "are, and OpenPose JSON is drawn by cldm.conditions.pose.render_pose"
            )
        return render_pose(self.extractor(image), image.shape[:2])


def render_pose(people: Sequence[Person], size: tuple[int, ...]) -> np.ndarray:
    """(h, w, 3) uint8: limbs as ellipses of half width 4 in 60 % of their colour, then points of radius 4."""
    canvas = np.zeros((*size[:2], 3), dtype=np.uint8)
    for person in people:
        _draw_body(canvas, person.body)
        _draw_hand(canvas, person.left_hand)
        _draw_hand(canvas, person.right_hand)
        for point in filter(None, person.face):
            cv2.circle(canvas, _pixel(point), 3, (255, 255, 255), -1)
    return canvas


def _draw_body(canvas: np.ndarray, points: Sequence[Point]) -> None:
    if not points:
        return
    for (first, second), color in zip(LIMBS, BODY_COLORS, strict=False):
        a, b = points[first], points[second]
        if a is None or b is None:
            continue
        middle = _pixel(((a[0] + b[0]) / 2, (a[1] + b[1]) / 2))
        length, angle = math.hypot(a[0] - b[0], a[1] - b[1]), math.degrees(math.atan2(a[1] - b[1], a[0] - b[0]))
        outline = np.array(cv2.ellipse2Poly(middle, (int(length / 2), 4), int(angle), 0, 360, 1))
        cv2.fillConvexPoly(canvas, outline, [int(value * 0.6) for value in color])
    for point, color in zip(points, BODY_COLORS, strict=True):
        if point is not None:
            cv2.circle(canvas, _pixel(point), 4, color, -1)


def _draw_hand(canvas: np.ndarray, points: Sequence[Point]) -> None:
    for i, (first, second) in enumerate(HAND_EDGES if points else ()):
        a, b = points[first], points[second]
        if a is not None and b is not None:
            color = [round(255 * value) for value in colorsys.hsv_to_rgb(i / len(HAND_EDGES), 1, 1)]
            cv2.line(canvas, _pixel(a), _pixel(b), color, 2)
    for point in filter(None, points):
        cv2.circle(canvas, _pixel(point), 4, (0, 0, 255), -1)


def _pixel(point: tuple[float, float]) -> tuple[int, int]:
    return int(point[0]), int(point[1])


BODY_25 = (*range(8), *range(9, 19))
"""Of OpenPose's own 25 points those that COCO's 18 have: without the middle of the hip, and the feet."""


def read_openpose(
    source: str | Path | dict[str, Any] | list[Any], size: tuple[int, int] | None = None
) -> tuple[list[Person], tuple[int, int]]:
    """OpenPose JSON (a file, or its content) -> people and the canvas (h, w).

    Bodies of 18 points (COCO) or 25 (OpenPose's default, of which 18 are drawn); a list of one frame is that frame.
    size: the canvas of a file that does not say it, as OpenPose's own do not. Coordinates are pixels, or shares of the
    canvas where none exceeds 1; points that are null, or have no confidence, were not seen. Raises ValueError for
    anything else.
    """
    what = f"{source}" if isinstance(source, str | Path) else "this"
    content = _read_json(Path(source).expanduser()) if isinstance(source, str | Path) else source
    if isinstance(content, list):
        if len(content) != 1:
            raise ValueError(f"{what} holds {len(content)} frames of OpenPose; give one of them")
        content = content[0]
    try:
        if not isinstance(content, dict) or not isinstance(content["people"], list | None):
            raise TypeError("people must be a list")
        told = [content.get(f"canvas_{side}") for side in ("height", "width")]
        if size is None and None in told:
            raise ValueError(f"{what} does not say its canvas (OpenPose's own files do not): give size=(height, width)")
        canvas = size or (int(told[0]), int(told[1]))  # type: ignore[arg-type]
        people = [_person(one, canvas) for one in content["people"] or []]
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__} {error}"
        raise ValueError(f"{what} is no OpenPose JSON (people, canvas_width, canvas_height): {reason}") from error
    if min(canvas) < 1 or max(canvas) > MOST_PIXELS:
        raise ValueError(f"{what} has a canvas of {canvas[1]}x{canvas[0]} pixels")
    return people, canvas


MOST_PIXELS = 1 << 14  # on a side of a canvas


def _person(one: dict[str, Any], size: tuple[int, int]) -> Person:
    found = {part: _points(one.get(f"{key}_keypoints_2d"), size) for part, key in _PARTS.items()}
    if len(found["body"]) == 25:
        found["body"] = tuple(found["body"][i] for i in BODY_25)
    for part, count in (("body", 18), ("left_hand", 21), ("right_hand", 21)):
        if len(found[part]) not in (0, count):
            raise ValueError(f"{part} must have {count} points, got {len(found[part])}")
    return Person(**found)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def _points(flat: Sequence[float | None] | None, size: tuple[int, int]) -> tuple[Point, ...]:
    """Triples of x, y, confidence as points in pixels."""
    values = [*(flat or ())]
    if len(values) % 3 or not all(v is None or (isinstance(v, int | float) and math.isfinite(v)) for v in values):
        raise TypeError(f"keypoints must be triples of numbers, got {len(values)} values")
    triples = [values[i : i + 3] for i in range(0, len(values), 3)]
    seen = [None if None in triple or triple[2] <= 0 else (triple[0], triple[1]) for triple in triples]  # type: ignore
    height, width = size if all(x <= 1 and y <= 1 for x, y in filter(None, seen)) else (1, 1)  # type: ignore
    return tuple(None if point is None else (point[0] * width, point[1] * height) for point in seen)  # type: ignore


def write_openpose(people: Sequence[Person], size: tuple[int, int]) -> dict[str, Any]:
    """The content of an OpenPose JSON file, in pixels; points not seen are 0, 0, 0."""
    return {
        "people": [
            {
                f"{key}_keypoints_2d": [
                    value for point in getattr(one, part) for value in ((*point, 1.0) if point else (0.0, 0.0, 0.0))
                ]
                for part, key in _PARTS.items()
            }
            for one in people
        ],
        "canvas_height": size[0],
        "canvas_width": size[1],
    }
