"""Depth, near = white, by any depth model in a local transformers folder."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch

from cldm.conditions import Condition, Polarity
from cldm.conditions.weights import model_folder, needs_transformers, to_device

NEAR_AND_FAR = (2, 85)  # percentiles of a metric map that become white and black, as for the published ZoeDepth maps


@dataclass(frozen=True)
class Depth(Condition):
    """Depth Anything V1 and V2, DPT, MiDaS (relative) and ZoeDepth, Depth Pro, Depth Anything metric (in metres).

    folder: a local transformers folder (config.json, preprocessor_config.json, model.safetensors). metric: whether
    the model answers in metres, where near is small; None reads it from config.json. Relative maps are stretched
    from their least to their greatest value, metric ones between percentiles and inverted.
    """

    folder: str
    metric: bool | None = None

    name: ClassVar[str] = "depth"
    polarity: ClassVar[Polarity] = "near_white"
    needs_weights: ClassVar[bool] = True

    def extract(self, image: np.ndarray) -> np.ndarray:
        return np.repeat(_eight_bits(self.nearness(image))[:, :, None], 3, axis=2)

    def nearness(self, image: np.ndarray) -> np.ndarray:
        """The map of an image (h, w, 3) uint8 before it is rounded: (h, w) float32 in [0, 1], near = 1."""
        values, metric = _predict(self.folder, image)
        metric = metric if self.metric is None else self.metric
        return nearness_from_metric(values) if metric else nearness(values)


def nearness(values: np.ndarray) -> np.ndarray:
    """Inverse depth or disparity (h, w), near = large, any unit -> float32 in [0, 1], stretched.

    A constant map gives 0. Values that are not finite (a stereo pair's holes) become 0, far.
    """
    values = np.asarray(values, dtype=np.float32)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(values.shape, dtype=np.float32)
    low, high = float(values[known].min()), float(values[known].max())
    scaled = (np.where(known, values, low) - low) / max(high - low, 1e-12)
    return scaled.clip(0, 1).astype(np.float32)


def nearness_from_metric(metres: np.ndarray) -> np.ndarray:
    """Depth in metres (h, w), near = small -> float32 in [0, 1], near = 1, between the percentiles `NEAR_AND_FAR`."""
    metres = np.asarray(metres, dtype=np.float32)
    known = np.isfinite(metres)
    if not known.any():
        return np.zeros(metres.shape, dtype=np.float32)
    near, far = np.percentile(metres[known], NEAR_AND_FAR)
    if far <= near:
        return np.zeros(metres.shape, dtype=np.float32)
    return (1 - (np.where(known, metres, far) - near) / (far - near)).clip(0, 1).astype(np.float32)


def near_white(values: np.ndarray) -> np.ndarray:
    """`nearness` as uint8."""
    return _eight_bits(nearness(values))


def near_white_from_metric(metres: np.ndarray) -> np.ndarray:
    """`nearness_from_metric` as uint8."""
    return _eight_bits(nearness_from_metric(metres))


def _eight_bits(unit: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as uint8, cut off rather than rounded, as the published annotators do."""
    return (unit * 255).astype(np.uint8)


@torch.no_grad()
def _predict(folder: str, image: np.ndarray) -> tuple[np.ndarray, bool]:
    """The model's map at the image's size, and whether it is in metres."""
    model, processor, metric = _load(folder)
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    size = image.shape[:2]
    sizes = {"target_sizes": [size]}
    if model.config.model_type == "zoedepth":  # pads its input, and must know what to cut off
        sizes["source_sizes"] = [size]
    found = processor.post_process_depth_estimation(model(**inputs), **sizes)
    return found[0]["predicted_depth"].float().cpu().numpy(), metric


@lru_cache(maxsize=2)
def _load(folder: str) -> tuple[Any, Any, bool]:
    try:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError as error:
        raise needs_transformers(Depth.name) from error
    path = model_folder(folder, Depth.name)
    processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    model = AutoModelForDepthEstimation.from_pretrained(path, local_files_only=True, use_safetensors=True)
    metric = model.config.model_type in ("zoedepth", "depth_pro")
    metric = metric or getattr(model.config, "depth_estimation_type", "relative") == "metric"
    return to_device(model), processor, metric
