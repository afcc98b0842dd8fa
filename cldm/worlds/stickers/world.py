"""The world of the stickers: what exists in it, and how one picture is drawn at random.

Units: the picture is [0, 1]^2 with x to the right and y DOWN; lengths are shares of its side; angles are in degrees,
clockwise on screen. A composition is a pure function of (seed, index, family), so any worker can make any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cldm.worlds.stickers.concepts import CONCEPTS, UNSEEN

RGB = tuple[float, float, float]

VERSION = 1
"""Of the compositions: a number's picture changes only together with it. Part of every cache's key."""

# Pale, so that every outline stands out.
GROUNDS: dict[str, RGB] = {
    "white": (0.97, 0.97, 0.97),
    "gray": (0.66, 0.67, 0.69),
    "mint": (0.70, 0.91, 0.78),
    "sky": (0.66, 0.84, 0.98),
    "pink": (0.99, 0.79, 0.84),
    "lavender": (0.80, 0.74, 0.95),
    "sand": (0.95, 0.87, 0.68),
}
COUNT_SHARES: tuple[float, ...] = (0.50, 0.44, 0.06)  # one, two, three stickers
MAX_STICKERS = len(COUNT_SHARES)
SIZES: tuple[tuple[float, float], ...] = ((0.62, 0.84), (0.45, 0.52), (0.37, 0.43))  # by the number of stickers
MAX_ANGLE = 12.0
MARGIN = 0.02  # between a sticker's square and the frame
APART = (0.235, 0.265)  # of a pair's centres from the middle, along the axis they stand on
ASIDE = 0.08  # of a pair's centres, across that axis
CORNER = 0.24  # of three centres from the middle, along both axes
WOBBLE = 0.02
GRADIENT = (-0.08, 0.02)  # change of the ground's brightness from top to bottom
LIGHT = (30.0, 60.0)  # where the light comes from, clockwise from left (45: top left)


@dataclass(frozen=True)
class Sticker:
    """One sticker: the concept's drawing, its longer side `size`, about the centre (x, y), turned by `angle`, the
    unturned drawing mirrored first where `mirrored` says so."""

    concept: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class Composition:
    """One to MAX_STICKERS stickers of distinct concepts, far to near: later ones cover earlier ones.

    light: where on screen the light comes from, in degrees clockwise from left; shadows fall away from it.
    gradient: signed change of the ground's brightness from top to bottom.
    hue: degrees by which the colours of the drawings are turned; the grounds keep theirs.
    """

    stickers: tuple[Sticker, ...]
    ground: str
    light: float = 45.0
    gradient: float = -0.03
    hue: float = 0.0


@dataclass(frozen=True)
class Family:
    """A set of compositions: the concepts that may appear; how far they turn, in degrees, whether some are mirrored;
    the shares of one, two and three stickers; how far their hues are turned, in degrees."""

    name: str
    concepts: tuple[str, ...]
    max_angle: float = MAX_ANGLE
    mirrors: bool = True
    shares: tuple[float, ...] = COUNT_SHARES
    hue: float = 0.0


BASE = Family("base", tuple(CONCEPTS))
CONTROL = Family("control", tuple(name for name in CONCEPTS if name not in UNSEEN))
HELD_OUT = Family("unseen", tuple(name for name in CONCEPTS if name in UNSEEN))
CALM = Family("calm", tuple(CONCEPTS), 0.0, False)  # each drawing upright, as its artist made it
PAIRS = Family("pairs", tuple(CONCEPTS), 0.0, False, (0.0, 1.0, 0.0))  # to learn sides from
RECOLOURED = Family("recoloured", CONTROL.concepts, hue=120.0)  # another look: red becomes green, green blue
FAMILIES: dict[str, Family] = {f.name: f for f in (BASE, CONTROL, HELD_OUT, CALM, PAIRS, RECOLOURED)}


def get_family(name: str) -> Family:
    """The family of that name; ValueError names the known ones."""
    if name not in FAMILIES:
        raise ValueError(f"unknown family of stickers {name!r}; known families: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def compose(seed: int, index: int, family: Family = BASE) -> Composition:
    """Composition number `index` of the family under `seed`; the same arguments always give the same one."""
    rng = np.random.default_rng([VERSION, seed, index, *family.name.encode()])
    count = 1 + int(rng.choice(len(family.shares), p=family.shares))
    concepts = rng.choice(family.concepts, count, replace=False)
    low, high = SIZES[count - 1]
    sizes = rng.uniform(low, high, count)
    centres = (_one, _pair, _three)[count - 1](rng, sizes)
    stickers = []
    for concept, size, (x, y) in zip(concepts, sizes, centres, strict=True):
        reach = 0.5 - MARGIN - size / 2
        x, y = (float(np.clip(v, 0.5 - reach, 0.5 + reach)) for v in (x, y))
        angle = float(rng.uniform(-family.max_angle, family.max_angle))
        mirrored = bool(rng.random() < 0.5) and family.mirrors
        stickers.append(Sticker(str(concept), x, y, float(size), angle, mirrored))
    ground = str(rng.choice(list(GROUNDS)))
    light, gradient = float(rng.uniform(*LIGHT)), float(rng.uniform(*GRADIENT))
    return Composition(tuple(stickers), ground, light, gradient, family.hue)


def _one(rng: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
    """(1, 2) anywhere within the frame."""
    reach = 0.5 - MARGIN - sizes[0] / 2
    return 0.5 + rng.uniform(-reach, reach, (1, 2))


def _pair(rng: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
    """(2, 2) side by side or one above the other."""
    along = np.array([-1.0, 1.0]) * rng.uniform(*APART, 2) * (1 if rng.random() < 0.5 else -1)
    centres = 0.5 + np.stack([along, rng.uniform(-ASIDE, ASIDE, 2)], axis=1)
    return centres if rng.random() < 0.5 else centres[:, ::-1]


def _three(rng: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
    """(3, 2) two in corners of one side, one in the middle of the opposite side; the figure is turned at random."""
    figure = CORNER * np.array([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0]])[rng.permutation(3)]
    for _ in range(int(rng.integers(4))):
        figure = figure[:, ::-1] * np.array([-1.0, 1.0])
    return 0.5 + figure + rng.uniform(-WOBBLE, WOBBLE, (3, 2))
