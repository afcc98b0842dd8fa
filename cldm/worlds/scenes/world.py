"""The world of the scenes: what exists in it, and how one scene is drawn at random.

Units: the image plane is [-1, 1]^2 with x to the right and y DOWN; lengths are in these units; angles are in
degrees, clockwise on screen. A scene is a pure function of (seed, index, family), so any worker can make any
scene without shared state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

RGB = tuple[float, float, float]

KINDS: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
SIZES: tuple[str, ...] = ("small", "large")

# Saturated, at least 20 degrees of hue apart; the scene reader relies on both.
COLORS: dict[str, RGB] = {
    "red": (0.87, 0.13, 0.17),
    "orange": (0.97, 0.50, 0.06),
    "yellow": (0.97, 0.87, 0.10),
    "green": (0.13, 0.66, 0.28),
    "blue": (0.12, 0.38, 0.90),
    "purple": (0.58, 0.20, 0.80),
}
# Pale: their saturation stays far below that of any object, lit or shadowed.
BACKGROUNDS: dict[str, RGB] = {
    "white": (0.97, 0.97, 0.97),
    "gray": (0.60, 0.60, 0.62),
    "mint": (0.70, 0.91, 0.78),
    "sky": (0.66, 0.84, 0.98),
    "peach": (1.00, 0.80, 0.67),
    "lavender": (0.80, 0.74, 0.95),
}

RADII: dict[str, tuple[float, float]] = {"small": (0.26, 0.32), "large": (0.42, 0.52)}
COUNT_SHARES: tuple[float, ...] = (0.44, 0.50, 0.06)  # one, two, three objects
MAX_OBJECTS = len(COUNT_SHARES)
MAX_ANGLE = 15.0
MARGIN = 0.06  # between an object's circle and the frame
CLOSENESS = 0.88  # smallest distance of two centres, as a share of the sum of their radii
DEPTH_LEVELS: tuple[float, ...] = (0.25, 0.50, 0.75)  # floor of an object on the far..near axis 0..1
DEPTH_JITTER = 0.04

HELD_OUT_KINDS: frozenset[str] = frozenset({"cross", "heart"})
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("circle", "blue"),
        ("square", "yellow"),
        ("square", "orange"),
        ("triangle", "purple"),
        ("star", "red"),
        ("ring", "green"),
    }
)


@dataclass(frozen=True)
class SceneObject:
    """One object. It lies inside the circle (x, y, radius). Nearer objects have a larger `depth` (0..1)."""

    kind: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    depth: float


@dataclass(frozen=True)
class Scene:
    """Objects (1 to 3, kinds and colours distinct) on a background.

    `light` is where on screen the light comes from, in degrees clockwise from left (45 = top left).
    `gradient` is the signed change of background brightness from top to bottom.
    """

    objects: tuple[SceneObject, ...]
    background: str
    light: float = 45.0
    gradient: float = -0.06


@dataclass(frozen=True)
class Family:
    """A set of scenes: kinds that may appear, (kind, colour) pairs that may not, what must appear."""

    name: str
    kinds: tuple[str, ...] = KINDS
    forbidden_pairs: frozenset[tuple[str, str]] = frozenset()
    required_kinds: frozenset[str] = frozenset()
    required_pairs: frozenset[tuple[str, str]] = frozenset()

    def admits(self, pairs: list[tuple[str, str]]) -> bool:
        """Whether a scene whose objects are these (kind, colour) pairs belongs to the family."""
        if any(kind not in self.kinds or (kind, color) in self.forbidden_pairs for kind, color in pairs):
            return False
        if not self.required_kinds and not self.required_pairs:
            return True
        return any(pair[0] in self.required_kinds or pair in self.required_pairs for pair in pairs)


BASE = Family("base")
CONTROL = Family("control", tuple(k for k in KINDS if k not in HELD_OUT_KINDS), HELD_OUT_PAIRS)
HELD_OUT = Family("held_out", required_kinds=HELD_OUT_KINDS, required_pairs=HELD_OUT_PAIRS)
FAMILIES: dict[str, Family] = {family.name: family for family in (BASE, CONTROL, HELD_OUT)}


def get_family(name: str) -> Family:
    """The family of that name; ValueError names the known ones."""
    if name not in FAMILIES:
        raise ValueError(f"unknown scene family {name!r}; known families: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def sample_scene(seed: int, index: int, family: Family = BASE) -> Scene:
    """Scene number `index` of the family under `seed`; the same arguments always give the same scene."""
    rng = np.random.default_rng([seed, index, *family.name.encode()])
    count = 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    pairs = _sample_pairs(rng, count, family)
    sizes = _sample_sizes(rng, count)
    objects = _place(rng, pairs, sizes)
    while not family.admits([(o.kind, o.color) for o in objects]):  # a required object may have been dropped
        objects = _place(rng, pairs, ["small"] * count)
    return Scene(
        objects=tuple(objects),
        background=str(rng.choice(list(BACKGROUNDS))),
        light=float(rng.uniform(30.0, 60.0)),
        gradient=float(rng.uniform(-0.09, -0.03)),
    )


def _sample_pairs(rng: np.random.Generator, count: int, family: Family) -> list[tuple[str, str]]:
    # Redrawing only kinds and colours keeps the shares of 1, 2, 3 objects the same in every family.
    while True:
        kinds = rng.choice(family.kinds, count, replace=False)
        colors = rng.choice(list(COLORS), count, replace=False)
        pairs = [(str(kind), str(color)) for kind, color in zip(kinds, colors, strict=True)]
        if family.admits(pairs):
            return pairs


def _sample_sizes(rng: np.random.Generator, count: int) -> list[str]:
    sizes = [str(size) for size in rng.choice(SIZES, count)]
    if count == MAX_OBJECTS:  # at most one large object fits
        first_large = sizes.index("large") if "large" in sizes else -1
        sizes = ["large" if i == first_large else "small" for i in range(count)]
    return sizes


def _place(rng: np.random.Generator, pairs: list[tuple[str, str]], sizes: list[str]) -> list[SceneObject]:
    levels = rng.choice(DEPTH_LEVELS, len(pairs), replace=False)
    placed: list[SceneObject] = []
    for (kind, color), size, level in zip(pairs, sizes, levels, strict=True):
        depth = float(level + rng.uniform(-DEPTH_JITTER, DEPTH_JITTER))
        angle = float(rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        blank = SceneObject(kind, color, size, 0.0, 0.0, 0.0, angle, depth)
        found = _find_place(rng, blank, placed)
        if found is None and size == "large":
            found = _find_place(rng, replace(blank, size="small"), placed)
        if found is not None:  # otherwise the scene has one object fewer
            placed.append(found)
    return placed


def _find_place(
    rng: np.random.Generator, blank: SceneObject, placed: list[SceneObject], tries: int = 60
) -> SceneObject | None:
    for _ in range(tries):
        radius = float(rng.uniform(*RADII[blank.size]))
        reach = 1.0 - MARGIN - radius
        x, y = (float(v) for v in rng.uniform(-reach, reach, 2))
        if all(math.hypot(x - o.x, y - o.y) >= CLOSENESS * (radius + o.radius) for o in placed):
            return replace(blank, x=x, y=y, radius=radius)
    return None
