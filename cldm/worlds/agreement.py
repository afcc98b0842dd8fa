"""Agreement of maps, per image: class maps, depth, normals, keypoints, colours, structure. Pure functions.

All take a prediction and a target of one shape and return (b,) float tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from kornia.color import rgb_to_lab
from kornia.metrics import ssim
from torch import Tensor


@dataclass(frozen=True)
class ClassScores:
    """miou: mean over classes of the intersection over union. accuracy: share of right pixels. (b,) in [0, 1]."""

    miou: Tensor
    accuracy: Tensor


def class_scores(prediction: Tensor, target: Tensor, ignore: int = -1) -> ClassScores:
    """Class numbers (b, h, w); pixels whose target is `ignore` do not count.

    A class that an image's prediction or target has counts once in its mean, whatever its area; the others do not.
    An image without any pixel that counts gives nan.
    """
    _same(prediction, target, 3)
    found = []
    for ours, theirs in zip(prediction, target, strict=True):
        known = theirs != ignore
        ours, theirs = ours[known], theirs[known]
        ious = [
            ((ours == c) & (theirs == c)).sum() / ((ours == c) | (theirs == c)).sum()
            for c in torch.cat([ours, theirs]).unique()
        ]
        found.append(torch.stack([torch.stack(ious).mean(), (ours == theirs).float().mean()]) if ious else
                     torch.full((2,), math.nan))  # fmt: skip
    miou, accuracy = torch.stack(found).unbind(1)
    return ClassScores(miou, accuracy)


@dataclass(frozen=True)
class DepthScores:
    """rmse: root of the mean square difference. absrel: mean of |difference| / target. delta1: share of pixels with
    max(prediction / target, target / prediction) < 1.25. (b,); absrel and delta1 where the target is above 0."""

    rmse: Tensor
    absrel: Tensor
    delta1: Tensor


def depth_scores(prediction: Tensor, target: Tensor) -> DepthScores:
    """Depth or nearness (b, h, w), not negative; absrel and delta1 are nan for a target that is 0 everywhere."""
    _same(prediction, target, 3)
    ours, theirs = prediction.flatten(1).double(), target.flatten(1).double()
    positive = theirs > 0
    count = positive.sum(1)
    safe = torch.where(positive, theirs, 1.0)
    relative = torch.where(positive, (ours - theirs).abs() / safe, 0.0).sum(1) / count
    ratio = torch.maximum(ours / safe, safe / ours.clamp_min(1e-12))
    near = torch.where(positive, ratio < 1.25, False).sum(1) / count
    return DepthScores((ours - theirs).square().mean(1).sqrt(), relative, near)


def normal_angle(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean angle in degrees between vectors (b, 3, h, w) of any length, over the pixels of mask (b, h, w) bool.

    nan for an empty mask.
    """
    _same(prediction, target, 4)
    cosine = torch.cosine_similarity(prediction.double(), target.double(), dim=1).clamp(-1, 1)
    angle = torch.rad2deg(torch.acos(cosine))
    mask = torch.ones_like(angle, dtype=torch.bool) if mask is None else mask
    return torch.where(mask, angle, 0.0).sum((1, 2)) / mask.sum((1, 2))


def color_difference(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean distance in CIE Lab (Delta E 1976; 2.3 is just noticeable) of colours (b, 3, h, w) in [0, 1]."""
    _same(prediction, target, 4)
    return (rgb_to_lab(prediction.double()) - rgb_to_lab(target.double())).norm(dim=1).mean((1, 2))


def structural_similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """SSIM of maps (b, c, h, w) in [0, 1], Gaussian window of 11 px: 1 for equal maps."""
    _same(prediction, target, 4)
    return ssim(prediction.float(), target.float(), 11).mean((1, 2, 3))


@dataclass(frozen=True)
class KeypointScores:
    """error: mean distance of the points that both have, nan without any. found: share of the wanted points with one
    of the same name within the tolerance."""

    error: float
    found: float


Keypoints = dict[tuple[str, int], tuple[float, float]]
"""(x, y) by (kind, number) of a point."""


def keypoint_scores(prediction: Keypoints, target: Keypoints, tolerance: float) -> KeypointScores:
    """Of one image, in the unit of the points."""
    distances = [math.dist(prediction[name], place) for name, place in target.items() if name in prediction]
    near = sum(distance <= tolerance for distance in distances)
    return KeypointScores(
        sum(distances) / len(distances) if distances else math.nan, near / len(target) if target else math.nan
    )


def _same(prediction: Tensor, target: Tensor, ndim: int) -> None:
    shapes: Sequence[tuple[int, ...]] = [tuple(prediction.shape), tuple(target.shape)]
    if shapes[0] != shapes[1] or len(shapes[0]) != ndim:
        raise ValueError(f"maps must share one shape of {ndim} dimensions, got {shapes[0]} and {shapes[1]}")
