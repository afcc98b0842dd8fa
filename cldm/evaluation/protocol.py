"""What is drawn to measure a ControlNet: items x prompt settings x noise seeds, the same for every method."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cldm.worlds import World
from ldm.random import stable_seed

SETTINGS = ("none", "insufficient", "conflicting", "perfect")
"""The four prompt settings of the paper's ablation (figure 8), from no help to all that a caption can say."""

INSUFFICIENT = "a high-quality, detailed, and professional image"
"""The paper's prompt that says nothing of the picture."""


@dataclass(frozen=True)
class Shot:
    """One image to draw. Its noise depends on item and `noise` alone: methods and prompt settings are paired."""

    item: int
    setting: str
    noise: int
    prompt: str

    @property
    def seed(self) -> int:
        """Of the sampler's noise."""
        return stable_seed("evaluation", self.noise, self.item)

    @property
    def file(self) -> str:
        """Where the image lies below the folder of the images."""
        return f"{self.setting}/item_{self.item:05d}_noise_{self.noise}.png"


def shots(
    captions: Sequence[str], settings: Sequence[str], noise_seeds: Sequence[int], world: World | None
) -> list[Shot]:
    """All images of a protocol in their order: by setting, noise seed, item."""
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown or not settings or len({*settings}) < len(settings):
        raise ValueError(f"prompts must be some of {', '.join(SETTINGS)}, each once, got {[*settings]}")
    if not noise_seeds or len({*noise_seeds}) < len(noise_seeds):
        raise ValueError(f"noise_seeds must be different numbers, at least one, got {[*noise_seeds]}")
    return [
        Shot(item, setting, noise, prompt)
        for setting in settings
        for noise in noise_seeds
        for item, prompt in enumerate(prompts(setting, captions, world))
    ]


def prompts(setting: str, captions: Sequence[str], world: World | None) -> list[str]:
    """The prompt of each item in a setting.

    none: "". perfect: the item's caption. insufficient: says nothing of the objects: the paper's generic prompt.
    conflicting: contradicts the hint: the caption of another item. A world says the last two in its own grammar.
    """
    if setting == "none":
        return [""] * len(captions)
    if setting == "perfect":
        return [*captions]
    if world is not None:
        return world.prompts(setting, captions)
    return [INSUFFICIENT] * len(captions) if setting == "insufficient" else _others(captions)


def _others(captions: Sequence[str]) -> list[str]:
    """For each item the next different caption that is not empty. ValueError where an item has none."""
    found = []
    for i, caption in enumerate(captions):
        later = [captions[(i + k) % len(captions)] for k in range(1, len(captions))]
        other = next((text for text in later if text.strip() and text != caption), None)
        if other is None:
            raise ValueError("prompts=conflicting needs items with different captions, these are all alike or empty")
        found.append(other)
    return found


FRACTIONS = {"scale", "start", "end", "guidance", "rescale", "eta"}
"""Settings that are no whole numbers, wherever in a protocol they stand."""


def as_typed(told: Any) -> Any:
    """A protocol whose fractions are floats: guidance=3 and guidance=3.0 are one protocol and have one hash."""
    if isinstance(told, list):
        return [as_typed(value) for value in told]
    if not isinstance(told, dict):
        return told
    return {
        key: float(value) if key in FRACTIONS and isinstance(value, int) else as_typed(value)
        for key, value in told.items()
    }


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """16 hex digits of everything that a protocol fixes: numbers of different hashes must not share a table."""
    text = json.dumps(protocol, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
