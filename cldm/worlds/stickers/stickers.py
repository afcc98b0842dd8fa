"""Stickers as a world (cldm.worlds.World)."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cldm.worlds import Scores
from cldm.worlds.stickers.captions import CAPTIONS_VERSION, caption
from cldm.worlds.stickers.composer import render
from cldm.worlds.stickers.concepts import CLASSES
from cldm.worlds.stickers.drawings import artwork
from cldm.worlds.stickers.judge import Judge, load_judge
from cldm.worlds.stickers.prompts import prompts
from cldm.worlds.stickers.scores import Reading, caption_scores, read, scores
from cldm.worlds.stickers.world import GROUNDS, VERSION, Composition, compose, get_family
from ldm.weights import fingerprint

SHIPPED = Path(__file__).parents[3] / "configs" / "protocol" / "judge.safetensors"
"""The judge in the repository."""

LABEL_STRIDE = 8  # pixels per class number: the autoencoder's factor


class StickersJudge:
    """Names stickers by a network. Implements cldm.worlds.Judge."""

    def __init__(self, net: Judge):
        self.net = net

    def read(self, images: Tensor) -> Reading:
        return read(self.net, images)

    def scores(self, reading: Reading, truths: Sequence[Composition]) -> list[Scores]:
        return scores(reading, truths)

    def prompt_scores(self, reading: Reading, prompts: Sequence[str]) -> list[Scores]:
        return caption_scores(reading, prompts)

    @property
    def features(self) -> Callable[[Tensor], Tensor] | None:
        return self.net.features

    def facts(self) -> dict[str, str]:
        return {"judge": fingerprint(self.net)}


@lru_cache(maxsize=2)
def _judge(path: str | Path) -> StickersJudge:
    return StickersJudge(load_judge(path))


class Stickers:
    """Artwork of animals and food, composed on coloured grounds: an outline tells what a thing is."""

    name = "stickers"
    unseen = "unseen"
    label_classes = (CLASSES, 1 + len(GROUNDS))
    hint_maps = ("segmentation", "lines", "edges", "order", "alpha")
    titles = {  # noqa: RUF012  (a constant)
        "concept": "concept right",
        "category": "category right",
        "seg_miou": "segmentation mIoU",
        "color_distance": "colour distance (Lab)",
        "objects": "right number of stickers",
        "ground": "ground",
        "fid_stickers": "FID (judge's features)",
        "caption_concept": "caption: concepts shown",
        "prompt_concept": "prompt: concepts shown",
    }
    headlines = ("concept", "category", "color_distance", "ground")

    @cached_property
    def version(self) -> str:
        """Of the compositions, of their label maps, of the captions and of the installed artwork."""
        return f"{VERSION}.{len(self.label_classes)}.{CAPTIONS_VERSION}, {artwork()}"

    def sample(self, seed: int, index: int, family: str) -> Composition:
        return compose(seed, index, get_family(family))

    def caption(self, truth: Composition, seed: int, index: int) -> str:
        return caption(truth, seed, index)

    def draw(self, truths: Sequence[Composition], size: int, maps: Collection[str] = ()) -> dict[str, Tensor]:
        """Maps: "labels" (concepts, 0 on the ground; and the picture's ground, from 1 in the order of GROUNDS,
        everywhere), and those of cldm.worlds.stickers.composer.MAPS."""
        labelled = "labels" in maps
        drawn = render(truths, size, [name for name in maps if name != "labels"] + ["concepts"] * labelled)
        found = {"image": drawn.image, **drawn.maps}
        if labelled:
            half = LABEL_STRIDE // 2
            concepts = drawn.maps["concepts"][:, half::LABEL_STRIDE, half::LABEL_STRIDE]
            grounds = torch.tensor([1 + list(GROUNDS).index(truth.ground) for truth in truths])
            found["labels"] = torch.stack([concepts, grounds[:, None, None].expand_as(concepts)], dim=1).byte()
        return found

    def prompts(self, setting: str, captions: Sequence[str]) -> list[str]:
        return prompts(setting, captions)

    def judge(self, weights: str | None = None) -> StickersJudge:
        """weights: of another judge than the shipped one (`python -m cldm judge`)."""
        return _judge(weights or SHIPPED)
