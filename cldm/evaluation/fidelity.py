"""Does the image obey the hint? Edge agreement, and PSNR for reconstructions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cldm.conditions import Condition, apply_batch


@dataclass(frozen=True)
class EdgeScores:
    """Agreement of two edge maps, each a float tensor in [0, 1]: (b,) per image, or () after `mean`."""

    precision: Tensor
    recall: Tensor
    f1: Tensor

    def mean(self) -> "EdgeScores":
        """Mean over images. The mean F1 is the mean of the F1 values, not the F1 of the means."""
        return EdgeScores(self.precision.mean(), self.recall.mean(), self.f1.mean())


def edge_scores(prediction: Tensor, target: Tensor, tolerance_px: int) -> EdgeScores:
    """Per-image precision, recall and F1 of edge maps, forgiving shifts of up to `tolerance_px` pixels.

    `prediction` and `target` are bool (b, h, w). A predicted edge pixel counts as right if a target edge
    pixel lies within Chebyshev distance `tolerance_px`, that is in the square of side 2 * tolerance_px + 1
    around it (a diagonal neighbour is at distance 1; the target is dilated by max_pool2d). Then, per image,

        precision = right predicted pixels / predicted pixels
        recall    = target pixels with a predicted pixel within the same distance / target pixels
        f1        = 2 * precision * recall / (precision + recall), and 0 where both are 0

    Two empty maps agree: all three are 1. If only one of them is empty, all three are 0.
    Raises ValueError for other shapes, other dtypes, or a negative tolerance.
    """
    if prediction.dtype != torch.bool or target.dtype != torch.bool:
        raise ValueError(f"edge maps must be bool, got {prediction.dtype} and {target.dtype}")
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise ValueError(
            f"edge maps must share one shape (b, h, w), got {tuple(prediction.shape)}, {tuple(target.shape)}"
        )
    if tolerance_px < 0:
        raise ValueError(f"tolerance_px must be >= 0, got {tolerance_px}")
    both_empty = ~(prediction.any(dim=2).any(dim=1) | target.any(dim=2).any(dim=1))
    precision = _share_near(prediction, target, tolerance_px)
    recall = _share_near(target, prediction, tolerance_px)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return EdgeScores(*(torch.where(both_empty, 1.0, value) for value in (precision, recall, f1)))


def edge_fidelity(images: Tensor, hints: Tensor, condition: Condition) -> dict[str, float]:
    """How well images obey their edge hints: mean scores of `condition(image)` against the hint.

    images (b, 3, h, w) in [-1, 1]; hints (b, 3, h, w) in [0, 1], an edge where any channel exceeds 0.5;
    `condition` is the one that made the hints. Returns means over the batch of at least one image, in [0, 1]:
    edge_f1_1px, edge_f1_2px, edge_precision_1px, edge_recall_1px. Raises ValueError if the shapes differ or
    if `condition` does not draw white lines on black.
    """
    if condition.polarity != "white_on_black":
        raise ValueError(f"edge fidelity needs a map of white lines on black, {condition.name!r} is none")
    if images.shape != hints.shape or len(images) == 0:
        raise ValueError(f"images and hints must share one shape, got {tuple(images.shape)}, {tuple(hints.shape)}")
    prediction = (apply_batch(condition, images) > 0.5).any(dim=1)
    target = (hints > 0.5).any(dim=1).to(prediction.device)
    near, wide = (edge_scores(prediction, target, tolerance).mean() for tolerance in (1, 2))
    return {
        "edge_f1_1px": near.f1.item(),
        "edge_f1_2px": wide.f1.item(),
        "edge_precision_1px": near.precision.item(),
        "edge_recall_1px": near.recall.item(),
    }


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB: two (b, c, h, w) in [-1, 1] -> (b,) float32.

    The peak is 2, the width of the range. Values outside it are clamped first, as they are when an image is
    saved. Equal images give infinity. Raises ValueError if the shapes differ.
    """
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"psnr needs two (b, c, h, w) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    difference = a.float().clamp(-1, 1) - b.float().clamp(-1, 1)
    return 10 * torch.log10(4 / difference.square().mean(dim=(1, 2, 3)))


def _share_near(points: Tensor, others: Tensor, tolerance_px: int) -> Tensor:
    """(b,) share of the true pixels of `points` with a true pixel of `others` near; 0 if there are none."""
    side = 2 * tolerance_px + 1
    dilated = F.max_pool2d(others.float()[:, None], side, stride=1, padding=tolerance_px)[:, 0]
    hits = (points * dilated).sum(dim=(1, 2))
    return hits / points.sum(dim=(1, 2)).clamp_min(1)
