"""The figures of each training stage: pictures of held-out scenes -> named numbers. One contract:

    metrics(pictures, batch, scenes, condition) -> dict[str, float]

pictures: images (b, 3, h, w) in [-1, 1] by name; batch: what they were made from; scenes: the batch's scenes.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from cldm.conditions import Condition, apply_batch
from cldm.data.scenes import Scene
from cldm.evaluation.captions import caption_fidelity, scene_fidelity
from cldm.evaluation.fidelity import edge_fidelity, psnr
from ldm.batch import Batch


def autoencoder_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, scenes: Sequence[Scene], condition: Condition
) -> dict[str, float]:
    """PSNR in dB of the reconstructions, and how well their edges agree with the originals'."""
    x, y = pictures["image"], pictures["reconstruction"]
    return {"psnr": psnr(y, x).mean().item(), **edge_fidelity(y, apply_batch(condition, x), condition)}


def diffusion_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, scenes: Sequence[Scene], condition: Condition
) -> dict[str, float]:
    """How well samples show their captions."""
    return caption_fidelity(pictures["sample"], batch["caption"])


def control_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, scenes: Sequence[Scene], condition: Condition
) -> dict[str, float]:
    """How well controlled samples obey their hints, and whether they show the scene and colours asked for."""
    return control_scores(pictures["controlled"], batch["hint"], scenes, condition)


def control_scores(images: Tensor, hints: Tensor, scenes: Sequence[Scene], condition: Condition) -> dict[str, float]:
    """Edge scores of images against hints (b, 3, h, w) in [0, 1], and scores against the known scenes."""
    return {**edge_fidelity(images, hints, condition), **scene_fidelity(images, scenes)}
