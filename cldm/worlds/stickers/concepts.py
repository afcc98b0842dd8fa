"""The concepts of the stickers world: what each is called, where OpenMoji has it, what kind of thing it is."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

CATEGORIES: tuple[str, ...] = ("animal", "fruit", "vegetable", "food", "plant")

# category: name and code point of each; the order numbers the classes, so new concepts go to the end of the table
_TABLE: dict[str, str] = {
    "animal": """
        penguin 1F427   dolphin 1F42C   peacock 1F99A    flamingo 1F9A9  octopus 1F419  crab 1F980      lobster 1F99E
        shrimp 1F990    squid 1F991     snail 1F40C      butterfly 1F98B bee 1F41D      ladybug 1F41E   spider 1F577
        turtle 1F422    snake 1F40D     crocodile 1F40A  frog 1F438      whale 1F433    shark 1F988     owl 1F989
        duck 1F986      eagle 1F985     parrot 1F99C     rooster 1F413   cow 1F404      pig 1F437       tiger 1F42F
        elephant 1F418  kangaroo 1F998  koala 1F428      bear 1F43B      hedgehog 1F994 rabbit 1F430""",
    "fruit": """
        apple 1F34E     banana 1F34C    grapes 1F347     watermelon 1F349 strawberry 1F353 cherries 1F352
        pineapple 1F34D lemon 1F34B     tangerine 1F34A  peach 1F351     pear 1F350""",
    "vegetable": "avocado 1F951 tomato 1F345 carrot 1F955 corn 1F33D broccoli 1F966 mushroom 1F344",
    "food": """
        bread 1F35E     hamburger 1F354 pizza 1F355      taco 1F32E      doughnut 1F369 cupcake 1F9C1   hotdog 1F32D
        fries 1F35F     cookie 1F36A""",
    "plant": "cactus 1F335 sunflower 1F33B tulip 1F337 rose 1F339",
}
PLURAL: frozenset[str] = frozenset({"grapes", "cherries", "fries"})
"""Names that take no article."""


@dataclass(frozen=True)
class Concept:
    """One thing that a sticker can show. number: its class, from 1; 0 is the ground. code: the SVG's name."""

    name: str
    code: str
    category: str
    number: int


def _read() -> dict[str, Concept]:
    concepts: dict[str, Concept] = {}
    for category, text in _TABLE.items():
        words = text.split()
        for name, code in zip(words[::2], words[1::2], strict=True):
            concepts[name] = Concept(name, code, category, 1 + len(concepts))
    return concepts


CONCEPTS: dict[str, Concept] = _read()
"""Every concept by its name, in the order of their numbers."""

CLASSES = 1 + len(CONCEPTS)
"""Classes of a label map: the ground, then the concepts."""

SHARE_OF_CONTROL = 0.6
"""About how much of each category the control family may show; the others are unseen concepts."""


def _unseen() -> frozenset[str]:
    # evenly spread over each category's list, so that neither part holds all birds or all citrus fruits
    names: set[str] = set()
    for category in CATEGORIES:
        own = [c.name for c in CONCEPTS.values() if c.category == category]
        kept = [int((i + 1) * SHARE_OF_CONTROL) - int(i * SHARE_OF_CONTROL) for i in range(len(own))]
        names |= {name for name, keep in zip(own, kept, strict=True) if not keep}
    return frozenset(names)


UNSEEN: frozenset[str] = _unseen()
"""Names of the concepts that no control branch is trained on."""


def get_concept(name: str) -> Concept:
    """The concept of that name; ValueError names the nearest known one."""
    if name not in CONCEPTS:
        close = difflib.get_close_matches(name.lower(), CONCEPTS, n=1, cutoff=0.0)
        raise ValueError(f"no sticker shows {name!r}; the nearest known name is {close[0]!r} of: {', '.join(CONCEPTS)}")
    return CONCEPTS[name]
