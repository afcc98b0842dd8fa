"""Which kind a region of pixels is: fits the renderer's own shapes to a mask.

For every kind, centre, radius and angle are refined by damped least squares between the mask and the kind's
soft occupancy; the kind with the best overlap wins. Pixels that another object may hide carry no weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from cldm.worlds.scenes.shapes import sdf
from cldm.worlds.scenes.world import KINDS

GRID = 28  # a region is resampled to GRID x GRID cells
CELL = 2 / GRID
PADDING = 0.22  # of the region's bounding box on each side: room for what is hidden
START_ANGLES = (-18.0, -9.0, 0.0, 9.0, 18.0)
SOFTNESS = (3.0, 2.0, 1.5, 1.5)  # of the template's border in cells, one per refinement step
MAX_TURN = math.radians(35.0)
DAMPING = 1e-2
BATCH = 32


@dataclass(frozen=True)
class Fit:
    """Best kind for a region, where it lies (image plane units, degrees), and its overlap (IoU) in [0, 1]."""

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    score: float


@dataclass(frozen=True)
class Region:
    """A region to fit: `own` (h,w) bool its pixels, `ignored` (h,w) bool those that may hide more of it."""

    own: np.ndarray
    ignored: np.ndarray


@torch.no_grad()
def fit_regions(regions: Sequence[Region]) -> list[Fit]:
    """The best fit for each region; every region must own at least one pixel."""
    fits: list[Fit] = []
    for start in range(0, len(regions), BATCH):
        fits += _fit_batch(regions[start : start + BATCH])
    return fits


def _fit_batch(regions: Sequence[Region]) -> list[Fit]:
    grids = [_resample(region) for region in regions]
    target = torch.from_numpy(np.stack([g[0] for g in grids])).flatten(1)
    weight = torch.from_numpy(np.stack([g[1] for g in grids])).flatten(1)
    results = [_fit_kind(kind, target, weight) for kind in KINDS]
    scores = torch.stack([score for score, _ in results], 1)
    params = torch.stack([theta for _, theta in results], 1)
    best = scores.argmax(1)
    fits = []
    for n, (k, (_, _, x, y, half)) in enumerate(zip(best.tolist(), grids, strict=True)):
        cx, cy, radius, turn = params[n, k].tolist()
        angle = math.degrees(turn)
        fits.append(Fit(KINDS[k], x + cx * half, y + cy * half, radius * half, angle, float(scores[n, k])))
    return fits


def _resample(region: Region) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """Target and weight (GRID,GRID) in [0,1] of a square crop; its centre and half side (image plane)."""
    height, width = region.own.shape
    x0, y0, w, h = cv2.boundingRect(region.own.view(np.uint8))
    side = math.ceil(max(w, h) * (1 + 2 * PADDING))
    left, top = round(x0 + w / 2 - side / 2), round(y0 + h / 2 - side / 2)
    rows, cols = slice(max(0, top), min(height, top + side)), slice(max(0, left), min(width, left + side))
    planes = np.zeros((side, side, 2), np.float32)  # outside of the frame nothing is known: weight 0
    inner = planes[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    inner[..., 0] = region.own[rows, cols]
    inner[..., 1] = region.own[rows, cols] | ~region.ignored[rows, cols]
    grid = cv2.resize(planes, (GRID, GRID), interpolation=cv2.INTER_AREA)
    target = grid[..., 0] / np.maximum(grid[..., 1], 1e-6)
    x, y = (left + side / 2) * 2 / width - 1, (top + side / 2) * 2 / height - 1
    return target.clip(0, 1), np.ascontiguousarray(grid[..., 1]), x, y, side / width


@lru_cache(maxsize=1)
def _axes() -> tuple[Tensor, Tensor]:
    axis = (torch.arange(GRID) + 0.5) * CELL - 1
    return axis.repeat(GRID), axis.repeat_interleave(GRID)


@lru_cache(maxsize=len(KINDS))
def _moments(kind: str) -> tuple[float, float]:
    """Area and height of the centroid (v, down) of the kind at radius 1."""
    axis = torch.linspace(-1.2, 1.2, 241)
    inside = sdf(kind, axis[None, :].expand(241, 241), axis[:, None].expand(241, 241)) < 0
    return float(inside.sum()) * 0.01**2, float((inside * axis[:, None]).sum() / inside.sum())


def _fit_kind(kind: str, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap (n,) and parameters (n,4) = centre x, y, radius, turn of the kind, in units of half a crop."""
    theta = _start(kind, target, weight)
    best_score, best = torch.full((len(target),), -1.0), theta
    steps = torch.zeros(5, 4)
    steps[1:] = torch.diag(torch.tensor([CELL / 2, CELL / 2, CELL / 2, 0.06]))
    start_radius = theta[:, 2]
    for step in range(len(SOFTNESS) + 1):
        last = step == len(SOFTNESS)
        trial = theta[:, None] + (steps[:1] if last else steps)
        occupancy = _occupancy(kind, trial, SOFTNESS[-1] if last else SOFTNESS[step])
        score = _overlap(occupancy[:, 0], target, weight)
        better = score > best_score
        best_score, best = torch.where(better, score, best_score), torch.where(better[:, None], theta, best)
        if not last:
            theta = theta + _descent(occupancy, target, weight, steps)
            radius = theta[:, 2].clamp(0.7 * start_radius, 1.5 * start_radius)
            turn = theta[:, 3].clamp(-MAX_TURN, MAX_TURN)
            theta = torch.stack((theta[:, 0], theta[:, 1], radius, turn), 1)
    return best_score, best


def _start(kind: str, target: Tensor, weight: Tensor) -> Tensor:
    """First guess from the mask's area and centroid, at the best of a few angles."""
    px, py = _axes()
    mass = (target * weight).clamp(min=1e-6)
    total = mass.sum(1)
    area, drop = _moments(kind)
    radius = (total * CELL**2 / area).sqrt()[:, None]
    turn = torch.tensor([math.radians(a) for a in START_ANGLES])[None]
    cx = ((mass * px).sum(1) / total)[:, None] + drop * radius * torch.sin(turn)
    cy = ((mass * py).sum(1) / total)[:, None] - drop * radius * torch.cos(turn)
    theta = torch.stack((cx, cy, radius.expand_as(cx), turn.expand_as(cx)), 2)
    score = _overlap(_occupancy(kind, theta, SOFTNESS[0]), target[:, None], weight[:, None])
    return theta[torch.arange(len(theta)), score.argmax(1)]


def _occupancy(kind: str, theta: Tensor, softness: float) -> Tensor:
    """(..., cells) in [0,1] of the kind with parameters theta (..., 4)."""
    px, py = _axes()
    cx, cy, radius, turn = theta[..., None].unbind(-2)
    cos, sin = torch.cos(turn) / radius, torch.sin(turn) / radius
    dx, dy = px - cx, py - cy
    distance = sdf(kind, dx * cos + dy * sin, dy * cos - dx * sin)
    return (0.5 - distance * (radius / (softness * CELL))).clamp_(0, 1)


def _overlap(occupancy: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    common = (torch.minimum(occupancy, target) * weight).sum(-1)
    either = (torch.maximum(occupancy, target) * weight).sum(-1)
    return common / either.clamp(min=1e-6)


def _descent(occupancy: Tensor, target: Tensor, weight: Tensor, steps: Tensor) -> Tensor:
    """One damped Gauss-Newton step; derivatives by the differences between the trials."""
    jacobian = (occupancy[:, 1:] - occupancy[:, :1]) / steps[1:].sum(1)[None, :, None]
    weighted = jacobian * weight[:, None]
    normal = weighted @ jacobian.transpose(1, 2)
    gradient = weighted @ (target - occupancy[:, 0])[..., None]
    diagonal = normal.diagonal(dim1=1, dim2=2)
    damped = normal + torch.diag_embed(DAMPING * diagonal + 1e-3 * diagonal.amax(1, keepdim=True) + 1e-6)
    return torch.linalg.solve(damped, gradient)[..., 0].clamp(-0.15, 0.15)
