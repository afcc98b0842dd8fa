"""Renders scenes and the exact maps that belong to them.

Every object is evaluated once, in a crop around it, as a signed distance d. From d come its outline
(antialiased), a bevelled height field (and from that shading, depth and normals) and a soft shadow; crops are
painted far to near.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cldm.worlds.scenes import maps as label_maps
from cldm.worlds.scenes.shapes import sdf
from cldm.worlds.scenes.world import BACKGROUNDS, COLORS, KINDS, RADII, Scene, SceneObject

BEVEL = 0.24  # width and height of the bevel, as a share of the radius
LIGHT_HEIGHT = 1.2  # of the light above the plane, against a horizontal part of 1
AMBIENT = 0.50  # brightness of a face turned fully away, as a share of a flat face
HIGHLIGHT = 0.30  # how far the best lit face moves towards white; small enough to stay saturated
SHADOW_OFFSET = 0.055
SHADOW_SOFTNESS = 0.07
SHADOW_STRENGTH = 0.34
LINE_WIDTH = 0.022  # of line drawings; never under one pixel
CROP_PAD = 0.13  # room for the shadow around an object
CHUNK_PIXELS = 2**19  # painted at a time; keeps the work inside the cache

MAPS: tuple[str, ...] = ("edges", "segmentation", "depth", "normals", "lines", "keypoints")


@dataclass
class Render:
    """Pictures of b scenes and, where asked for, their maps (else None). All float32 but `labels`."""

    image: Tensor
    """(b,3,h,w) in [-1,1]"""
    labels: Tensor
    """(b,h,w) int64: 0 background, k = k-th object of its scene (the visible one)"""
    edges: Tensor | None = None
    """(b,1,h,w) in {0,1}: label borders, on the side of the nearer object"""
    segmentation: Tensor | None = None
    """(b,3,h,w) in [0,1]: one palette colour per kind, background black"""
    depth: Tensor | None = None
    """(b,1,h,w) in [0,1]: near = white, background 0; one unit is one unit of the image plane"""
    normals: Tensor | None = None
    """(b,3,h,w) in [0,1]: (left, top, viewer) high where the surface faces there; background (.5,.5,1)"""
    lines: Tensor | None = None
    """(b,1,h,w) in [0,1]: outlines and bevel creases, white on black"""
    keypoints: Tensor | None = None
    """(b,3,h,w) in [0,1]: coloured dots at corners and extremes, on black"""

    def part(self, start: int, stop: int) -> Render:
        """Views of scenes start..stop-1."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: v[start:stop] for name, v in values.items() if v is not None})


@dataclass
class _Crops:
    """Square crops of n objects of one size: where they lie, and their distance fields."""

    objects: list[SceneObject]
    place: list[tuple[int, int, int, int]]  # label, scene in the chunk, first row, first column
    distance: Tensor  # (n,c,c)
    behind: Tensor  # (n,c,c) distance to the object that throws the shadow
    radius: Tensor  # (n,1,1)
    light: Tensor  # (2,n,1,1) towards the light on screen


@torch.no_grad()
def render(scenes: Sequence[Scene], size: int = 128, maps: Collection[str] = ()) -> Render:
    """Pictures of `scenes`, size x size px (a multiple of 8), and the named maps (see MAPS)."""
    if size < 8 or size % 8:
        raise ValueError(f"size must be a positive multiple of 8, got {size}")
    unknown = sorted(set(maps) - set(MAPS))
    if unknown:
        raise ValueError(f"unknown maps {', '.join(unknown)}; known maps: {', '.join(MAPS)}")
    out = _blank(scenes, size, maps)
    step = max(8, CHUNK_PIXELS // size**2)
    for start in range(0, len(scenes), step):
        stop = min(start + step, len(scenes))
        _render_chunk(scenes[start:stop], size, out.part(start, stop))
    if "edges" in maps:
        out.edges = label_maps.edges(out.labels, scenes)
    if "segmentation" in maps:
        out.segmentation = label_maps.segmentation(out.labels, scenes)
    if "keypoints" in maps:
        out.keypoints = label_maps.keypoints(out.labels, scenes)
    return out


def _blank(scenes: Sequence[Scene], size: int, maps: Collection[str]) -> Render:
    b = len(scenes)
    image, labels = torch.empty(b, 3, size, size), torch.zeros(b, size, size, dtype=torch.int64)
    out = Render(image, labels)
    if "depth" in maps:
        out.depth = torch.zeros(b, 1, size, size)
    if "normals" in maps:
        out.normals = torch.tensor([0.5, 0.5, 1.0])[:, None, None].repeat(b, 1, size, size)
        out.normals = out.normals.view(b, 3, size, size)
    if "lines" in maps:
        out.lines = torch.zeros(b, 1, size, size)
    return out


def _render_chunk(scenes: Sequence[Scene], size: int, out: Render) -> None:
    _paint_background(out.image, scenes, size)
    patches: list[tuple[float, tuple[int, int, int, int], dict[str, Tensor]]] = []
    for size_name in RADII:
        crops = _crop(scenes, size_name, size)
        if crops is not None:
            layers = _layers(crops, size, out)
            names, rows = list(layers), zip(*(layer.unbind(0) for layer in layers.values()), strict=True)
            for obj, place, row in zip(crops.objects, crops.place, rows, strict=True):
                patches.append((obj.depth, place, dict(zip(names, row, strict=True))))
    for _, place, patch in sorted(patches, key=lambda entry: entry[0]):
        _paint(out, place, patch)
    out.image.mul_(2).sub_(1)


def _paint_background(image: Tensor, scenes: Sequence[Scene], size: int) -> None:
    color = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes])
    gradient = torch.tensor([scene.gradient for scene in scenes])
    level = 1 + gradient[:, None] * _axis(size).add(1).mul(0.5)
    image.copy_((color[:, :, None] * level[:, None]).clamp_(0, 1)[..., None])


def _axis(size: int) -> Tensor:
    return (torch.arange(size) + 0.5) * (2 / size) - 1


def _crop(scenes: Sequence[Scene], size_name: str, size: int) -> _Crops | None:
    found = [
        (KINDS.index(o.kind), b, k, o)
        for b, scene in enumerate(scenes)
        for k, o in enumerate(scene.objects, start=1)
        if o.size == size_name
    ]
    if not found:
        return None
    found.sort(key=lambda entry: entry[:3])  # so that each kind is one slice
    objects = [entry[3] for entry in found]
    x, y, radius, angle = torch.tensor([(o.x, o.y, o.radius, o.angle) for o in objects]).unbind(1)
    turn = torch.tensor([math.radians(scenes[entry[1]].light) for entry in found])
    light = torch.stack((-torch.cos(turn), -torch.sin(turn)))
    side = min(size, 2 * math.ceil((RADII[size_name][1] + CROP_PAD) * size / 2))
    left, top = (((p + 1) * (size / 2) - side / 2).round().long().clamp_(0, size - side) for p in (x, y))
    axis, span = _axis(size), torch.arange(side)
    dx, dy = axis[left[:, None] + span] - x[:, None], axis[top[:, None] + span] - y[:, None]
    shift = light[:, :, None] * SHADOW_OFFSET
    return _Crops(
        objects=objects,
        place=[(e[2], e[1], r, c) for e, r, c in zip(found, top.tolist(), left.tolist(), strict=True)],
        distance=_distance(objects, dx, dy, radius, angle),
        behind=_distance(objects, dx + shift[0], dy + shift[1], radius, angle),
        radius=radius[:, None, None],
        light=light[:, :, None, None],
    )


def _distance(objects: list[SceneObject], dx: Tensor, dy: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    turn = torch.deg2rad(angle)
    cos, sin = (torch.cos(turn) / radius)[:, None], (torch.sin(turn) / radius)[:, None]
    u = (dx * cos)[:, None, :] + (dy * sin)[:, :, None]
    v = (dy * cos)[:, :, None] - (dx * sin)[:, None, :]
    out = torch.empty_like(u)
    start = 0
    for kind in KINDS:
        stop = start + sum(o.kind == kind for o in objects)
        if stop > start:
            out[start:stop] = sdf(kind, u[start:stop], v[start:stop])
        start = stop
    return out.mul_(radius[:, None, None])


def _layers(crops: _Crops, size: int, out: Render) -> dict[str, Tensor]:
    """What `_paint` needs of each object, first dimension n: image = image * keep + light, and so on."""
    distance = crops.distance
    height = _height(distance, crops.radius)
    gx, gy = _slopes(height, size)
    alpha = (0.5 - distance * (size / 2)).clamp_(0, 1)
    shadow = (0.5 - crops.behind / (2 * SHADOW_SOFTNESS)).clamp_(0, 1)
    shadow = shadow * shadow * (3 - 2 * shadow)
    layers = {
        "keep": (1 - alpha) * (1 - SHADOW_STRENGTH * shadow),
        "light": _shade(crops, gx, gy) * alpha[:, None],
        "inside": distance < 0,
    }
    if out.depth is not None:
        floor = torch.tensor([o.depth for o in crops.objects])
        layers["depth"] = (floor[:, None, None] + height)[:, None]
    if out.normals is not None:
        normal = torch.stack((gx, gy, torch.ones_like(gx)), 1) * (1 + gx * gx + gy * gy).rsqrt()[:, None]
        layers["normals"] = normal.mul_(0.5).add_(0.5)
    if out.lines is not None:
        width = max(1.0, LINE_WIDTH * size / 2)
        offset = torch.minimum(distance.abs(), (distance + BEVEL * crops.radius).abs()) * (size / 2)
        layers["stroke"] = (0.5 + width / 2 - offset).clamp_(0, 1)
        layers["unstroke"] = 1 - (0.5 + width / 2 - distance * (size / 2)).clamp_(0, 1)
    return layers


def _height(distance: Tensor, radius: Tensor) -> Tensor:
    # Continued a little below the rim, so that antialiased border pixels are lit like the rim.
    bevel = BEVEL * radius
    rest = (1 + distance / bevel).clamp_(0, 1.3)
    return bevel * (1 - rest * rest)


def _slopes(height: Tensor, size: int) -> tuple[Tensor, Tensor]:
    gx, gy = torch.zeros_like(height), torch.zeros_like(height)
    gx[:, :, 1:-1] = (height[:, :, 2:] - height[:, :, :-2]) * (size / 4)
    gy[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * (size / 4)
    return gx, gy


def _shade(crops: _Crops, gx: Tensor, gy: Tensor) -> Tensor:
    # Brightness relative to a flat face, which therefore shows exactly the colour of the object.
    facing = LIGHT_HEIGHT - gx * crops.light[0] - gy * crops.light[1]
    lambert = facing / (LIGHT_HEIGHT * (1 + gx * gx + gy * gy).sqrt_())
    dark = AMBIENT + (1 - AMBIENT) * lambert.clamp(0, 1)
    white = (HIGHLIGHT * 2 * (lambert - 1)).clamp_(0, HIGHLIGHT)
    color = torch.tensor([COLORS[o.color] for o in crops.objects])[:, :, None, None]
    return (color * (dark - white)[:, None]).add_(white[:, None])


def _paint(out: Render, place: tuple[int, int, int, int], patch: dict[str, Tensor]) -> None:
    # One object at a time: slices are several times faster than indexing with a batch of crops.
    label, scene, top, left = place
    inside = patch["inside"]
    rows, cols = slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
    out.image[scene, :, rows, cols].mul_(patch["keep"]).add_(patch["light"])
    out.labels[scene, rows, cols].masked_fill_(inside, label)
    for target, name in ((out.depth, "depth"), (out.normals, "normals")):
        if target is not None:
            view = target[scene, :, rows, cols]
            view.copy_(torch.where(inside, patch[name], view))
    if out.lines is not None:
        out.lines[scene, 0, rows, cols].mul_(patch["unstroke"]).add_(patch["stroke"]).clamp_(0, 1)
