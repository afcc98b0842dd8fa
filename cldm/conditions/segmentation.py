"""Segmentation in the exact colours of ADE20K's 150 classes, which a segmentation ControlNet reads as codes."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from cldm.conditions import Condition, Polarity
from cldm.conditions.weights import model_folder, needs_transformers, to_device

_HEX = """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
    ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
    08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
    eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
    0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
    0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
    00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
    8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
    ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
    00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

ADE20K = np.frombuffer(bytes.fromhex("".join(_HEX.split())), dtype=np.uint8).reshape(150, 3)
"""RGB of class 0 (wall), 1 (building), 2 (sky), ...; classes 6 (road) and 48 (skyscraper) share one colour."""


@dataclass(frozen=True)
class Segmentation(Condition):
    """ADE20K classes by UPerNet, SegFormer, Mask2Former or OneFormer in a local transformers folder."""

    folder: str

    name: ClassVar[str] = "segmentation"
    polarity: ClassVar[Polarity] = "color"
    needs_weights: ClassVar[bool] = True
    nearest: ClassVar[bool] = True

    def extract(self, image: np.ndarray) -> np.ndarray:
        return labels_to_colors(_predict(self.folder, image))


def labels_to_colors(labels: np.ndarray) -> np.ndarray:
    """Class numbers (h, w) in 0..149 -> colours (h, w, 3) uint8; others (unlabelled) are black."""
    known = (labels >= 0) & (labels < len(ADE20K))
    return np.where(known[:, :, None], ADE20K[np.where(known, labels, 0)], np.uint8(0))


def colors_to_labels(colors: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) uint8 -> class numbers (h, w) int64, -1 where a colour is none of the palette's.

    The shared colour of road and skyscraper is read as road.
    """
    weights = np.array([65536, 256, 1])
    table = np.full(1 << 24, -1, dtype=np.int16)
    table[(ADE20K.astype(np.int64) @ weights)[::-1]] = np.arange(len(ADE20K))[::-1]  # the first of two wins
    return table[colors.astype(np.int64) @ weights].astype(np.int64)


@torch.no_grad()
def _predict(folder: str, image: np.ndarray) -> np.ndarray:
    """Class numbers (h, w) at the image's size."""
    model, processor = _load(folder)
    task = {"task_inputs": ["semantic"]} if model.config.model_type == "oneformer" else {}
    inputs = processor(images=image, return_tensors="pt", **task).to(model.device)
    found = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[image.shape[:2]])
    return found[0].cpu().numpy()


@lru_cache(maxsize=2)
def _load(folder: str) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise needs_transformers(Segmentation.name) from error
    path = model_folder(folder, Segmentation.name)
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    if config.num_labels != len(ADE20K):
        raise ValueError(
            f"condition.folder={folder} knows {config.num_labels} classes; the palette is that of "
            f"ADE20K's {len(ADE20K)}"
        )
    kind: Any = transformers.AutoModelForSemanticSegmentation
    reader: Any = transformers.AutoImageProcessor
    options: dict[str, str] = {}
    if config.model_type in ("oneformer", "mask2former", "maskformer"):
        kind = transformers.AutoModelForUniversalSegmentation
    if config.model_type == "oneformer":  # its processor would look for the class names on a hub
        reader, options = transformers.AutoProcessor, _class_names(path)
    processor = reader.from_pretrained(path, local_files_only=True, **options)
    return to_device(kind.from_pretrained(path, local_files_only=True, use_safetensors=True)), processor


def _class_names(folder: Path) -> dict[str, str]:
    """Where OneFormer's processor finds its list of classes: beside its config, as a file that you put there."""
    configs = [json.loads(path.read_text()) for path in sorted(folder.glob("*processor_config.json"))]
    names = [config.get("image_processor", config).get("class_info_file") for config in configs]
    name = next((name for name in names if name), "ade20k_panoptic.json")
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"condition.folder={folder} lacks {name}, the class names that OneFormer's processor reads; put it there "
            "(it is published beside the demo of the model), nothing is fetched at run time"
        )
    return {"repo_path": str(folder), "class_info_file": name}
