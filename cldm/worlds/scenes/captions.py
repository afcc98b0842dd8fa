"""Captions of scenes: a small English grammar, its writer and its parser.

one     a large red star on a mint background
two     a large red star left of a small blue ring on a mint background
        (left of, right of, above, below, or plain "and"; either object may come first)
three   a large red star, a small blue ring and a small green cross on a mint background
Any size word may be missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from cldm.worlds.scenes.world import BACKGROUNDS, COLORS, KINDS, SIZES, Scene

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
SIZE_DROP = 0.25  # share of objects described without their size
RELATION_DROP = 0.25  # share of two-object captions that say "and" instead of the relation

_GRAMMAR_WORDS = {"a", "an", "and", "on", "background", ",", *" ".join(RELATIONS).split()}
WORDS: tuple[str, ...] = tuple(sorted(_GRAMMAR_WORDS.union(KINDS, SIZES, COLORS, BACKGROUNDS)))
"""Every word that a caption can contain, in lower case, sorted; the comma is a word of its own."""

_STREAM = 0x63617074  # keeps the draws of captions apart from those of scenes with the same (seed, index)
_OBJECT = re.compile(rf"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<color>{'|'.join(COLORS)}) (?P<kind>{'|'.join(KINDS)})")
_BACKGROUND = re.compile(rf"(?P<objects>.+) on an? (?P<background>{'|'.join(BACKGROUNDS)}) background")
_BETWEEN = re.compile(rf" ({'|'.join(RELATIONS)}) ")


@dataclass(frozen=True)
class CaptionObject:
    """One object as a caption names it; `size` is None where the caption does not say."""

    color: str
    kind: str
    size: str | None = None


@dataclass(frozen=True)
class CaptionSpec:
    """What a caption says. `relation` (of two objects) is where the first lies as seen from the second."""

    objects: tuple[CaptionObject, ...]
    background: str
    relation: str | None = None


def relation_of(dx: float, dy: float) -> str:
    """Name of the displacement first minus second (y down), by its dominant axis."""
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def describe(scene: Scene, seed: int, index: int) -> CaptionSpec:
    """What the caption of the scene says; a pure function of its arguments."""
    rng = np.random.default_rng([seed, index, _STREAM])
    order = [scene.objects[int(i)] for i in rng.permutation(len(scene.objects))]
    sizes = [None if rng.random() < SIZE_DROP else o.size for o in order]
    objects = tuple(CaptionObject(o.color, o.kind, size) for o, size in zip(order, sizes, strict=True))
    relation = None
    if len(order) == 2 and rng.random() >= RELATION_DROP:
        relation = relation_of(order[0].x - order[1].x, order[0].y - order[1].y)
    return CaptionSpec(objects, scene.background, relation)


def format_caption(spec: CaptionSpec) -> str:
    """The caption that says exactly this; `parse_caption` is its inverse."""
    phrases = []
    for o in spec.objects:
        words = " ".join(word for word in (o.size, o.color, o.kind) if word)
        phrases.append(f"{'an' if words[0] in 'aeiou' else 'a'} {words}")
    if len(phrases) == 2 and spec.relation:
        text = f"{phrases[0]} {spec.relation} {phrases[1]}"
    else:
        text = " and ".join([*([", ".join(phrases[:-1])] if phrases[:-1] else []), phrases[-1]])
    return f"{text} on a {spec.background} background"


def caption(scene: Scene, seed: int, index: int) -> str:
    """A caption of the scene; the same arguments always give the same words."""
    return format_caption(describe(scene, seed, index))


def parse_caption(text: str) -> CaptionSpec:
    """What a caption says; ValueError for any text outside of the grammar (in any case and spacing)."""
    clean = " ".join(text.lower().split())
    outer = _BACKGROUND.fullmatch(clean)
    if outer is None:
        raise ValueError(
            f"caption {text!r} does not end in 'on a <background> background' with one of: {', '.join(BACKGROUNDS)}"
        )
    body, relation = outer["objects"], None
    between = _BETWEEN.search(body)
    if between is not None:
        relation = between[1]
        phrases = [body[: between.start()], body[between.end() :]]
    else:
        head, *last = body.rsplit(" and ", 1)
        phrases = [*head.split(", "), *last]
        if len(phrases) > 3 or (len(phrases) > 1 and not last):
            raise ValueError(f"caption {text!r} should name 1 to 3 objects, as in 'a ..., a ... and a ...'")
    objects = tuple(_parse_object(phrase, text) for phrase in phrases)
    return CaptionSpec(objects, outer["background"], relation)


def _parse_object(phrase: str, text: str) -> CaptionObject:
    match = _OBJECT.fullmatch(phrase)
    if match is None:
        raise ValueError(
            f"caption {text!r}: cannot read {phrase!r} as 'a [{'|'.join(SIZES)}] <color> <kind>' with colors "
            f"{', '.join(COLORS)} and kinds {', '.join(KINDS)}"
        )
    return CaptionObject(match["color"], match["kind"], match["size"])
