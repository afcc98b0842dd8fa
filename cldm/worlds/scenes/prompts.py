"""The prompt settings of the ablations in the scenes' grammar."""

from collections.abc import Sequence

from cldm.worlds.scenes.captions import CaptionObject, CaptionSpec, format_caption, parse_caption
from cldm.worlds.scenes.world import BACKGROUNDS, COLORS, KINDS


def prompts(setting: str, captions: Sequence[str]) -> list[str]:
    """insufficient: the background alone. conflicting: see `contradicted`."""
    specs = [parse_caption(caption) for caption in captions]
    if setting == "conflicting":
        return [format_caption(contradicted(spec)) for spec in specs]
    return [f"a {spec.background} background" for spec in specs]


def contradicted(spec: CaptionSpec) -> CaptionSpec:
    """The caption with kinds, colours and background that the scene does not have; sizes and relation stay."""
    kinds = [kind for kind in KINDS if kind not in {o.kind for o in spec.objects}]
    colors = [color for color in COLORS if color not in {o.color for o in spec.objects}]
    names = [*BACKGROUNDS]
    objects = tuple(
        CaptionObject(colors[(i + [*COLORS].index(o.color)) % len(colors)], kinds[i % len(kinds)], o.size)
        if len(spec.objects) == 1
        else CaptionObject(colors[i], kinds[i], o.size)
        for i, o in enumerate(spec.objects)
    )
    background = names[(names.index(spec.background) + 1) % len(names)]
    return CaptionSpec(objects, background, spec.relation)
