"""The world of the stickers: OpenMoji's artwork composed on coloured grounds, with exact truth maps and captions."""

from cldm.worlds.stickers.captions import WORDS, CaptionSpec, caption, parse_caption
from cldm.worlds.stickers.composer import MAPS, Composed, render
from cldm.worlds.stickers.concepts import CATEGORIES, CLASSES, CONCEPTS, UNSEEN, Concept, get_concept
from cldm.worlds.stickers.prompts import prompts
from cldm.worlds.stickers.world import (
    BASE,
    CONTROL,
    GROUNDS,
    HELD_OUT,
    Composition,
    Family,
    Sticker,
    compose,
    get_family,
)

__all__ = [
    "BASE",
    "CATEGORIES",
    "CLASSES",
    "CONCEPTS",
    "CONTROL",
    "GROUNDS",
    "HELD_OUT",
    "MAPS",
    "UNSEEN",
    "WORDS",
    "CaptionSpec",
    "Composed",
    "Composition",
    "Concept",
    "Family",
    "Sticker",
    "caption",
    "compose",
    "get_concept",
    "get_family",
    "parse_caption",
    "prompts",
    "render",
]
