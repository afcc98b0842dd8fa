"""The judge of scenes: does a picture show what its caption, or its scene, says? Read from pixels alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from cldm.worlds import Scores
from cldm.worlds.agreement import class_scores
from cldm.worlds.scenes.captions import CaptionObject, CaptionSpec, parse_caption
from cldm.worlds.scenes.fitting import Region, fit_regions
from cldm.worlds.scenes.geometry import geometry_scores
from cldm.worlds.scenes.reader import (
    COLOR_NAMES,
    MIN_SHARE,
    ReadObject,
    ReadScene,
    color_map,
    read_background,
    read_scenes,
    to_uint8,
)
from cldm.worlds.scenes.renderer import render
from cldm.worlds.scenes.segmenter import Segmenter, kind_labels
from cldm.worlds.scenes.world import Scene
from ldm.weights import fingerprint

RELATION_DIRECTIONS: dict[str, tuple[float, float]] = {
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
}
RELATION_CONE = 60.0  # degrees around the direction; captions themselves stay within 45


@dataclass(frozen=True)
class Reading:
    """Images (n, 3, h, w) in [-1, 1], and the scenes that are read in them."""

    images: Tensor
    scenes: list[ReadScene]


class SceneJudge:
    """Reads scenes exactly; with a segmenter, a network judges beside it, and has features.

    Implements cldm.worlds.Judge.
    """

    def __init__(self, segmenter: Segmenter | None = None):
        self.segmenter = segmenter

    def read(self, images: Tensor) -> Reading:
        return Reading(images, read_scenes(images))

    def scores(self, reading: Reading, truths: Sequence[Scene]) -> list[Scores]:
        """`scene_scores` and `geometry_scores`, and the segmenter's agreement with the true kinds."""
        size = reading.images.shape[-1]
        true = render(truths, size, ("depth", "normals"))
        found = scene_scores(reading.images, truths, true.labels)
        parts = [found, geometry_scores(reading.scenes, truths, true)]
        if self.segmenter is not None:
            classes = class_scores(self.segmenter.labels(reading.images), kind_labels(truths))
            pairs = zip(classes.miou.tolist(), classes.accuracy.tolist(), strict=True)
            parts.append([{"segmenter_miou": [miou], "segmenter_accuracy": [share]} for miou, share in pairs])
        return [{name: values for part in row for name, values in part.items()} for row in zip(*parts, strict=True)]

    def prompt_scores(self, reading: Reading, prompts: Sequence[str]) -> list[Scores]:
        return caption_scores(reading.scenes, prompts)

    @property
    def features(self) -> Callable[[Tensor], Tensor] | None:
        return self.segmenter and self.segmenter.features

    def facts(self) -> dict[str, str]:
        return {} if self.segmenter is None else {"segmenter": fingerprint(self.segmenter)}


def caption_scores(reads: Sequence[ReadScene], captions: Sequence[str]) -> list[Scores]:
    """How well pictures, as `read_scenes` reads them, show their captions. All values are in [0, 1], best 1.

    color_recall     captioned objects whose colour covers at least 1 % of the image
    color_precision  saturated pixels in a captioned colour (0 for an image without any)
    background       images whose dominant background is the captioned one
    objects          images with as many objects as captioned
    shape            captioned objects whose kind is among the kinds read, whatever their colour
    binding_one      captioned objects read with their own colour AND their own kind: one-object captions
    binding          the same for two-object captions, where colours can be swapped
    relation         two-object captions with a relation and both captioned colours read as objects: the first
                     object lies within 60 degrees of the stated direction from the second (1/3 by chance)

    ValueError for a caption outside of the grammar, or if the counts differ.
    """
    if len(reads) != len(captions):
        raise ValueError(f"{len(reads)} images came with {len(captions)} captions")
    specs = [parse_caption(text) for text in captions]
    return [_caption_scores(spec, read) for spec, read in zip(specs, reads, strict=True)]


def _caption_scores(spec: CaptionSpec, read: ReadScene) -> Scores:
    kinds = {o.kind for o in read.objects}
    pairs = {(o.color, o.kind) for o in read.objects}
    colors = {o.color for o in spec.objects}
    saturated = sum(read.coverage.values())
    bound = [float((o.color, o.kind) in pairs) for o in spec.objects]
    return {
        "color_recall": [float(read.coverage[o.color] >= MIN_SHARE) for o in spec.objects],
        "color_precision": [sum(read.coverage[c] for c in colors) / saturated if saturated else 0.0],
        "background": [float(read.background == spec.background)],
        "objects": [float(len(read.objects) == len(spec.objects))],
        "shape": [float(o.kind in kinds) for o in spec.objects],
        "binding_one": bound if len(spec.objects) == 1 else [],
        "binding": bound if len(spec.objects) == 2 else [],
        "relation": _relation_score(spec, read),
    }


def _relation_score(spec: CaptionSpec, read: ReadScene) -> list[float]:
    matched = match_objects(spec.objects, read)
    if spec.relation is None or any(found is None for found in matched):
        return []
    first, second = (found for found in matched if found is not None)
    return [float(relation_holds(spec.relation, first.x - second.x, first.y - second.y))]


def relation_holds(relation: str, dx: float, dy: float) -> bool:
    """Whether the displacement first minus second (y down) lies within RELATION_CONE of that direction."""
    ux, uy = RELATION_DIRECTIONS[relation]
    return ux * dx + uy * dy >= math.cos(math.radians(RELATION_CONE)) * math.hypot(dx, dy) > 0


def match_objects(objects: Sequence[CaptionObject], read: ReadScene) -> list[ReadObject | None]:
    """For each captioned object the one read in its colour (of its kind, if there are several), or None."""
    matched = []
    for wanted in objects:
        same = [o for o in read.objects if o.color == wanted.color]
        right = [o for o in same if o.kind == wanted.kind]
        matched.append(max(right or same, key=lambda o: o.radius, default=None))
    return matched


def scene_scores(images: Tensor, scenes: Sequence[Scene], labels: Tensor) -> list[Scores]:
    """How well square images (b, 3, h, w) in [-1, 1] show known scenes. All values are in [0, 1], best 1.

    shape_iou           IoU of the pixels read as the object's colour and its visible mask
    shape               objects whose kind is read at their place, whatever the colour there
    color_binding       objects whose colour is the most frequent saturated one inside their mask
    color_binding_many  the same, over scenes with two or three objects only
    background          images whose dominant background is the scene's

    labels: numbers of the visible objects (b, h, w), as the renderer gives them.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (b, 3, h, w), got {tuple(images.shape)}")
    if len(images) != len(scenes):
        raise ValueError(f"{len(images)} images came with {len(scenes)} scenes")
    masks = labels.numpy()
    maps = [color_map(image) for image in images]
    rows = []
    for image, colors, label, scene, shapes in zip(
        images, maps, masks, scenes, _shapes_at_place(maps, masks, scenes), strict=True
    ):
        values: Scores = {"shape_iou": [], "shape": shapes, "color_binding": [], "color_binding_many": []}
        values["background"] = [float(read_background(to_uint8(image), colors) == scene.background)]
        for k, obj in enumerate(scene.objects, start=1):
            mask, painted = label == k, colors == 1 + COLOR_NAMES.index(obj.color)
            values["shape_iou"].append(float((mask & painted).sum() / max(1, (mask | painted).sum())))
            counts = np.bincount(colors[mask], minlength=len(COLOR_NAMES) + 1)[1:]
            right = float(counts.any() and COLOR_NAMES[int(counts.argmax())] == obj.color)
            values["color_binding"].append(right)
            values["color_binding_many"] += [right] if len(scene.objects) > 1 else []
        rows.append(values)
    return rows


def _shapes_at_place(maps: Sequence[np.ndarray], labels: np.ndarray, scenes: Sequence[Scene]) -> list[list[float]]:
    """For each scene and each of its objects 1 if its kind is read at its place, else 0."""
    regions: list[list[Region | None]] = [
        [_region_at(colors > 0, label, k) for k in range(1, len(scene.objects) + 1)]
        for colors, label, scene in zip(maps, labels, scenes, strict=True)
    ]
    fits = iter(fit_regions([region for found in regions for region in found if region is not None]))
    return [
        [
            float(region is not None and next(fits).kind == obj.kind)
            for region, obj in zip(found, scene.objects, strict=True)
        ]
        for found, scene in zip(regions, scenes, strict=True)
    ]


def _region_at(saturated: np.ndarray, label: np.ndarray, k: int) -> Region | None:
    """The connected saturated region that overlaps the mask of object k most; other objects' masks hide."""
    mask = label == k
    others = ((label > 0) & ~mask).astype(np.uint8)
    # One pixel more: the blurred border of a neighbour is not part of this object.
    hidden = (cv2.dilate(others, np.ones((3, 3), np.uint8)) > 0) & ~mask
    count, parts = cv2.connectedComponents((saturated & ~hidden).astype(np.uint8), connectivity=8)
    overlaps = np.bincount(parts[mask], minlength=count)[1:]
    if not overlaps.any():
        return None
    return Region(parts == 1 + int(overlaps.argmax()), hidden)
