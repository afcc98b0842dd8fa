"""The prompts of each setting (paper, section 3.3 and figure 8): none, insufficient, conflicting, perfect."""

from __future__ import annotations

from collections.abc import Sequence

from cldm.worlds.stickers.captions import CaptionSpec, format_caption, parse_caption
from cldm.worlds.stickers.concepts import CONCEPTS
from cldm.worlds.stickers.world import GROUNDS

SETTINGS: tuple[str, ...] = ("none", "insufficient", "conflicting", "perfect")


def prompts(setting: str, captions: Sequence[str]) -> list[str]:
    """The prompt of each captioned picture in a setting.

    none: "". insufficient: says nothing of the stickers: their ground alone. conflicting: the caption with concepts and
    a ground that the picture does not have. perfect: the caption. ValueError for another setting or a caption outside
    of the grammar.
    """
    if setting not in SETTINGS:
        raise ValueError(f"prompts must be one of {', '.join(SETTINGS)}, got {setting!r}")
    specs = [parse_caption(text) for text in captions]
    if setting == "none":
        return [""] * len(specs)
    if setting == "insufficient":
        return [format_caption(CaptionSpec((), spec.ground)) for spec in specs]
    return [format_caption(contradicted(spec) if setting == "conflicting" else spec) for spec in specs]


def contradicted(spec: CaptionSpec) -> CaptionSpec:
    """The caption with other concepts, each half the table away and so most often of another category, and the next
    ground; the relation stays."""
    names, grounds = list(CONCEPTS), list(GROUNDS)
    others: list[str] = []
    for name in spec.concepts:
        start = names.index(name) + len(names) // 2
        turns = (names[(start + step) % len(names)] for step in range(len(names)))
        others.append(next(other for other in turns if other not in spec.concepts and other not in others))
    return CaptionSpec(tuple(others), grounds[(grounds.index(spec.ground) + 1) % len(grounds)], spec.relation)
