"""The procedural world: scenes, their pictures and maps, their captions, and a reader of pictures."""

from cldm.worlds.scenes.captions import WORDS, CaptionObject, CaptionSpec, caption, parse_caption
from cldm.worlds.scenes.reader import ReadObject, ReadScene, color_map, read_scene, read_scenes
from cldm.worlds.scenes.renderer import MAPS, Render, render
from cldm.worlds.scenes.world import (
    BACKGROUNDS,
    BASE,
    COLORS,
    CONTROL,
    HELD_OUT,
    KINDS,
    Family,
    Scene,
    SceneObject,
    get_family,
    sample_scene,
)

__all__ = [
    "BACKGROUNDS",
    "BASE",
    "COLORS",
    "CONTROL",
    "HELD_OUT",
    "KINDS",
    "MAPS",
    "WORDS",
    "CaptionObject",
    "CaptionSpec",
    "Family",
    "ReadObject",
    "ReadScene",
    "Render",
    "Scene",
    "SceneObject",
    "caption",
    "color_map",
    "get_family",
    "parse_caption",
    "read_scene",
    "read_scenes",
    "render",
    "sample_scene",
]
