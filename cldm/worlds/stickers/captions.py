"""Captions of compositions: a small English grammar, its writer and its parser.

one     a flamingo on a mint background
two     a flamingo left of a taco on a mint background
        (left of, right of, above, below, or plain "and"; most name the left or upper one first, as one reads)
three   a flamingo, a taco and grapes on a mint background
none    a mint background (says nothing of the stickers)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from cldm.worlds.stickers.concepts import CONCEPTS, PLURAL, get_concept
from cldm.worlds.stickers.world import GROUNDS, MAX_STICKERS, Composition

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
RELATION_DROP = 0.2  # share of captions of two that say "and" instead of the relation
READING_ORDER = 0.75  # share of captions of two in reading order; the others are in either order
CAPTIONS_VERSION = 2
"""Of the captions: a composition's words change only together with it. Part of every cache's key."""

_GRAMMAR_WORDS = {"a", "an", "and", "on", "background", ",", *" ".join(RELATIONS).split()}
WORDS: tuple[str, ...] = tuple(sorted(_GRAMMAR_WORDS.union(CONCEPTS, GROUNDS)))
"""Every word that a caption can contain, in lower case, sorted; the comma is a word of its own."""

_STREAM = 0x63617074  # keeps the draws of captions apart from those of compositions of the same (seed, index)
_GROUND = re.compile(rf"(?:(?P<things>.+) on )?an? (?P<ground>{'|'.join(GROUNDS)}) background")
_BETWEEN = re.compile(rf" ({'|'.join(RELATIONS)}) ")
_THING = re.compile(r"(?:an? )?(?P<name>[a-z]+)")


@dataclass(frozen=True)
class CaptionSpec:
    """What a caption says. `relation` (of two concepts) is where the first lies as seen from the second."""

    concepts: tuple[str, ...]
    ground: str
    relation: str | None = None


def relation_of(dx: float, dy: float) -> str:
    """Name of the displacement first minus second (y down), by its dominant axis."""
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def describe(composition: Composition, seed: int, index: int) -> CaptionSpec:
    """What the caption of the composition says; a pure function of its arguments.

    Two stickers are mostly named in reading order. If either came first as often, a side would follow from the order
    and the relation only together, like a parity: a base trained on that placed stickers at random after 16,100 steps.
    With the order alone right most of the time it learns the order first, and then the exceptions.
    """
    rng = np.random.default_rng([seed, index, _STREAM])
    order = [composition.stickers[int(i)] for i in rng.permutation(len(composition.stickers))]
    if len(order) != 2:
        return CaptionSpec(tuple(s.concept for s in order), composition.ground)
    drops, reads = rng.random() < RELATION_DROP, rng.random() < READING_ORDER
    relation = relation_of(order[0].x - order[1].x, order[0].y - order[1].y)
    if reads and relation in ("right of", "below"):
        order, relation = order[::-1], {"right of": "left of", "below": "above"}[relation]
    return CaptionSpec(tuple(s.concept for s in order), composition.ground, None if drops else relation)


def with_article(word: str) -> str:
    """ "a taco", "an owl", "grapes"."""
    return word if word in PLURAL else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def format_caption(spec: CaptionSpec) -> str:
    """The caption that says exactly this; `parse_caption` is its inverse."""
    ground = f"a {spec.ground} background"
    things = [with_article(name) for name in spec.concepts]
    if not things:
        return ground
    if len(things) == 2 and spec.relation:
        return f"{things[0]} {spec.relation} {things[1]} on {ground}"
    return " and ".join([*([", ".join(things[:-1])] if things[:-1] else []), things[-1]]) + f" on {ground}"


def caption(composition: Composition, seed: int, index: int) -> str:
    """A caption of the composition; the same arguments always give the same words."""
    return format_caption(describe(composition, seed, index))


def parse_caption(text: str) -> CaptionSpec:
    """What a caption says, in any case and spacing. ValueError for any text outside of the grammar; for a concept
    that is not known it names the nearest one that is."""
    clean = " ".join(text.lower().split())
    outer = _GROUND.fullmatch(clean)
    if outer is None:
        raise ValueError(f"caption {text!r} does not end in 'on a GROUND background', one of: {', '.join(GROUNDS)}")
    body, relation = outer["things"], None
    if body is None:
        return CaptionSpec((), outer["ground"])
    if between := _BETWEEN.search(body):
        relation = between[1]
        things = [body[: between.start()], body[between.end() :]]
    else:
        head, *last = body.rsplit(" and ", 1)
        things = [*head.split(", "), *last]
        if len(things) > MAX_STICKERS or (len(things) > 1 and not last):
            raise ValueError(f"caption {text!r} should name 1 to {MAX_STICKERS} things, as in 'a ..., a ... and a ...'")
    return CaptionSpec(tuple(_parse_thing(thing, text) for thing in things), outer["ground"], relation)


def _parse_thing(thing: str, text: str) -> str:
    match = _THING.fullmatch(thing)
    if match is None:
        raise ValueError(f"caption {text!r}: cannot read {thing!r} as one of: {', '.join(CONCEPTS)}")
    return get_concept(match["name"]).name
