"""Conditions: pure functions from an image to the hint that a ControlNet obeys.

A condition object is its own parameters: a frozen dataclass, made by hand (`Canny(low=50)`), by name
(`get_condition("canny", low=50)`) or by Hydra (`_target_: cldm.conditions.canny.Canny`), then called on an
image. One family a file; a file is imported when its condition is first asked for, so heavy extractors cost
nothing here. Weights come from a local path that the user names; nothing is ever downloaded.
"""

import importlib
import warnings
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

Polarity = Literal["white_on_black", "near_white", "color"]
"""What the values of a map mean: bright lines on black, depth with near = white, or colours with meanings."""

_REGISTRY = {
    "blur": ("cldm.conditions.color", "Blur"),
    "canny": ("cldm.conditions.canny", "Canny"),
    "canny_kornia": ("cldm.conditions.canny", "CannyKornia"),
    "color_grid": ("cldm.conditions.color", "ColorGrid"),
    "depth": ("cldm.conditions.depth", "Depth"),
    "inpaint": ("cldm.conditions.inpaint", "Inpaint"),
    "invert": ("cldm.conditions.plain", "Invert"),
    "lineart_standard": ("cldm.conditions.lines", "LineartStandard"),
    "lsd": ("cldm.conditions.lines", "LineSegments"),
    "none": ("cldm.conditions.plain", "Unchanged"),
    "normal": ("cldm.conditions.normal", "Normal"),
    "pose": ("cldm.conditions.pose", "Pose"),
    "recolor": ("cldm.conditions.color", "Recolor"),
    "scribble": ("cldm.conditions.scribble", "Scribble"),
    "scribble_xdog": ("cldm.conditions.scribble", "ScribbleXDoG"),
    "segmentation": ("cldm.conditions.segmentation", "Segmentation"),
    "shuffle": ("cldm.conditions.color", "Shuffle"),
    "sobel": ("cldm.conditions.softedge", "Sobel"),
    "softedge": ("cldm.conditions.softedge", "SoftEdge"),
    "threshold": ("cldm.conditions.plain", "Threshold"),
    "tile": ("cldm.conditions.color", "Tile"),
}


class HintWarning(UserWarning):
    """A hint is usable but probably not what its author meant."""


@dataclass(frozen=True)
class Condition(ABC):
    """Base of all conditions. A subclass is a frozen dataclass of parameters that implements `extract`."""

    name: ClassVar[str]
    polarity: ClassVar[Polarity]
    binary: ClassVar[bool] = False  # True where every pixel of a map is black or white, so that files are kept crisp
    needs_weights: ClassVar[bool] = False  # True where a model file must be at hand
    mirrors: ClassVar[bool] = True  # True where a flipped map is the map of the flipped image
    reads_alpha: ClassVar[bool] = False  # True where transparency is a hole to paint in, which the hint has as -1
    nearest: ClassVar[bool] = False  # True where colours are codes: maps are resized without mixing them
    version: ClassVar[int] = 1  # counted up with every change of what it makes: part of every key of its maps

    @property
    def computable(self) -> bool:
        """Whether it can be computed from a picture."""
        return True

    @property
    def measurable(self) -> bool:
        """Whether an image can be measured against a hint by its own map."""
        return self.computable

    @abstractmethod
    def extract(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB, contiguous -> (h, w, 3) uint8 RGB. Must not alter its argument."""

    def vary(self, rng: np.random.Generator) -> "Condition":
        """The same condition with parameters drawn for one training sample; itself where none should vary."""
        return self

    def to_hint(self, pixels: np.ndarray) -> np.ndarray:
        """A map as this condition makes it, uint8 (h, w, c) -> the hint, float32 (h, w, 3) in [0, 1]."""
        return pixels.astype(np.float32) / 255

    def batch(self, images: Tensor) -> Tensor:
        """Hints (b, 3, h, w) float32 in [0, 1] of uint8 images (b, 3, h, w), on their device."""
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        hints = torch.empty(images.shape, dtype=torch.float32)
        for hint, array in zip(hints, arrays, strict=True):
            hint.copy_(torch.from_numpy(self.to_hint(self(array))).permute(2, 0, 1))
        return hints.to(images.device)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The map of one image: (h, w, 3) uint8 RGB -> (h, w, 3) uint8 RGB.

        Raises TypeError if `image` is not uint8 and ValueError if it is not of shape (h, w, 3).
        """
        if image.dtype != np.uint8:
            raise TypeError(f"condition {self.name!r} takes uint8 images, got {image.dtype}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"condition {self.name!r} takes images of shape (h, w, 3), got {image.shape}")
        return self.extract(np.ascontiguousarray(image))


def known_conditions() -> tuple[str, ...]:
    """Names that `get_condition` accepts, sorted."""
    return tuple(sorted(_REGISTRY))


def get_condition(name: str, **params: Any) -> Condition:
    """The condition called `name`, with `params` over its defaults. Raises ValueError for unknown ones."""
    if name not in _REGISTRY:
        raise ValueError(f"unknown condition {name!r}; known: {', '.join(known_conditions())}")
    module, attribute = _REGISTRY[name]
    kind: type[Condition] = getattr(importlib.import_module(module), attribute)
    known = [field.name for field in fields(kind)]
    if unknown := [param for param in params if param not in known]:
        raise ValueError(f"condition {name!r} has no parameter {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [param for param in required if param not in params]:
        raise ValueError(f"condition {name!r} needs {missing[0]}, a local path of yours; nothing is downloaded")
    try:
        return kind(**params)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(f"condition {name!r} with {params}: {error}") from error


def apply_batch(condition: Condition, images: Tensor) -> Tensor:
    """Hints of a batch: images (b, 3, h, w) in [-1, 1] -> (b, 3, h, w) float32 in [0, 1], same device.

    The one exception to the range: masked pixels of an inpainting hint are -1.

    Images are first clamped and rounded to 8 bits, as in a saved PNG, so that hints of samples, of files and
    of data sets are the same function. Raises ValueError for another shape and for values that are not
    finite.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (b, 3, h, w), got {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images contain values that are not finite (NaN or infinity)")
    return condition.batch(((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))


def apply_like(condition: Condition, images: Tensor, hints: Tensor) -> Tensor:
    """Maps of images to be compared with the hints that they should obey: as `apply_batch`, on the images' device.

    A hole is the hint's own: what was to be painted there is free.
    """
    found, hints = apply_batch(condition, images), hints.to(images.device)
    if not condition.reads_alpha:
        return found
    return torch.where(hints < 0, hints, ((images.float() + 1) * 127.5).round().clamp(0, 255) / 255)


def warn_if_blank(hint: Tensor, polarity: Polarity = "white_on_black", what: str = "hint") -> tuple[str, ...]:
    """Warn (HintWarning) about maps that cannot steer an image: blank, saturated, or of inverted polarity.

    `hint` is (c, h, w) or (b, c, h, w) in [0, 1]; `what` names it in the message, a file name for instance.
    Returns the messages, one per kind of trouble, with a count where it is a batch. Changes nothing.
    """
    if hint.ndim not in (3, 4):
        raise ValueError(f"{what} must have shape (c, h, w) or (b, c, h, w), got {tuple(hint.shape)}")
    batch = hint.detach().float().reshape(-1, *hint.shape[-3:])
    troubles = [_trouble(one, polarity) for one in batch]
    messages = []
    for text in dict.fromkeys(trouble for trouble in troubles if trouble):
        count = troubles.count(text)
        subject = what if hint.ndim == 3 else f"{count} of {len(batch)} maps in {what}"
        messages.append(f"{subject}: {text}")
    for message in messages:
        warnings.warn(message, HintWarning, stacklevel=2)
    return tuple(messages)


def _trouble(hint: Tensor, polarity: Polarity) -> str | None:
    """What is wrong with one map (c, h, w) in [0, 1], in words, or None."""
    low, high = hint.amin(dim=(1, 2)), hint.amax(dim=(1, 2))
    if bool((high - low < 2 / 255).all()):
        return f"blank (every pixel is {float(hint.mean()):.2f}), it says nothing about the image"
    if polarity == "color":
        return None
    white = float((hint > 0.99).all(dim=0).float().mean())
    if white > 0.95:
        return f"saturated ({white:.0%} of the pixels are white)"
    if polarity == "near_white":
        third = max(hint.shape[1] // 3, 1)
        top, bottom = float(hint[:, :third].mean()), float(hint[:, -third:].mean())
        if top - bottom > 0.35:  # floors are near, skies and back walls far
            return f"brighter above ({top:.2f}) than below ({bottom:.2f}) where near = white is expected: inverted?"
    if polarity == "white_on_black" and float(hint.mean()) > 0.5:
        return f"mostly white (mean {float(hint.mean()):.2f}) where white lines on black are expected: inverted?"
    return None
