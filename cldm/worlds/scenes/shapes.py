"""Signed distance functions of the kinds, in units of an object's radius (every shape fits the unit circle).

Coordinates u to the right, v DOWN, tensors of any shape; distances are negative inside. Corners are rounded
by taking the distance to a slightly smaller shape. True distances make bevels, outlines and shadows even.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ROUNDING = 0.06  # radius of rounded corners

RING_RADIUS, RING_HALF_WIDTH = 0.68, 0.24
STAR_OUTER, STAR_INNER = 0.94, 0.50  # before rounding
CIRCLE_RADIUS = 0.90
SQUARE_HALF = 0.72
TRIANGLE_CIRCUMRADIUS = 0.92
CROSS_LENGTH, CROSS_HALF_WIDTH = 0.90, 0.30
HEART_SCALE, HEART_CENTER = 1.50, 0.56


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - CIRCLE_RADIUS


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - RING_RADIUS).abs_().sub_(RING_HALF_WIDTH)


def _square(u: Tensor, v: Tensor) -> Tensor:
    half = SQUARE_HALF - ROUNDING
    a, b = u.abs() - half, v.abs() - half
    outside = torch.hypot(a.clamp(min=0), b.clamp(min=0))
    return outside + torch.maximum(a, b).clamp_(max=0) - ROUNDING


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    k = math.sqrt(3.0)
    half = TRIANGLE_CIRCUMRADIUS * k / 2 - ROUNDING  # half of a side
    x, y = u.abs() - half, half / k - v
    fold = x + k * y > 0
    x, y = torch.where(fold, (x - k * y) / 2, x), torch.where(fold, (-k * x - y) / 2, y)
    x = x - x.clamp(-2 * half, 0)
    return -torch.hypot(x, y) * torch.sign(y) - ROUNDING


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Two reflections fold the plane into one half of one arm, which has a single edge from tip to notch.
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = u.abs(), -v
    m = 2 * (c * x - s * y).clamp(min=0)
    x, y = x - m * c, y + m * s
    m = 2 * (-c * x - s * y).clamp(min=0)
    x, y = x + m * c, y + m * s
    x, y = x.abs(), y - STAR_OUTER
    edge_x, edge_y = STAR_INNER * s, STAR_INNER * c - STAR_OUTER
    along = ((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2)).clamp_(0, 1)
    side = torch.sign(x * -edge_y + y * edge_x)
    return torch.hypot(x - along * edge_x, y - along * edge_y) * side - ROUNDING


def _cross(u: Tensor, v: Tensor) -> Tensor:
    length, half = CROSS_LENGTH - ROUNDING, CROSS_HALF_WIDTH - ROUNDING
    a, b = u.abs(), v.abs()
    long, short = torch.maximum(a, b), torch.minimum(a, b)
    x, y = long - length, short - half
    k = torch.maximum(x, y)
    outside = k > 0
    x, y = torch.where(outside, x, half - long), torch.where(outside, y, -k)
    return torch.sign(k) * torch.hypot(x.clamp(min=0), y.clamp(min=0)) - ROUNDING


def _heart(u: Tensor, v: Tensor) -> Tensor:
    x, y = u.abs() / HEART_SCALE, HEART_CENTER - v / HEART_SCALE
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    m = 0.5 * (x + y).clamp(min=0)
    notch = torch.minimum(x.square() + (y - 1).square(), (x - m).square() + (y - m).square())
    body = notch.sqrt() * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, body) * HEART_SCALE


_SDFS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
}


def sdf(kind: str, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance from (u, v) to the outline of the kind, in radii; negative inside."""
    return _SDFS[kind](u, v)
